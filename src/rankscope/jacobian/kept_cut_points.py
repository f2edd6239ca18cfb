"""Finished cut points of an image that is not finished: one of them may take minutes where the Jacobian is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope._base.errors import OutputError, RankscopeError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.files import digest_of_bytes, read_arrays, write_arrays
from rankscope.jacobian.checkpoint import Checkpoint, image_key
from rankscope.jacobian.spectrum_files import arrays_of, described, read_spectrum
from rankscope.slicing import ModuleCall, Sample
from rankscope.spectra.density import AnySpectrum

__all__ = ["NAMED", "KeptCut", "KeptCutPoints", "call_key"]

_UNIT = "cut point"
NAMED = 16  # characters of a digest in a file's name; the whole one is inside the file


@dataclass(frozen=True)
class KeptCut:
    """What one cut point left.

    Attributes
    ----------
    mark : float or None
        log₂ of gᵀJᵀJg for a seeded g, which another model or another derivative would change.
    reason : str
        Why there is no spectrum, where that is not because the Jacobian is not finite.
    """

    spectrum: AnySpectrum | None
    kinks: int
    mark: float | None
    reason: str = ""
    facts: tuple[Fact, ...] = ()


def call_key(call: ModuleCall) -> str:
    """What names a cut point in another run, and in another process."""
    return repr(tuple(call.key))


class KeptCutPoints:
    """One safetensors file per cut point, in the folder of a checkpoint and for the same question."""

    def __init__(self, store: Checkpoint) -> None:
        self.store = store
        self.confirmed = False  # a kept cut point was compared with a new product and is the same
        self._read = self._damaged = self._other = 0
        self._here: set[str] = set()
        if store.folder is not None:
            self._here = {file.name for file in store.folder.glob("cut-*.safetensors")}

    def images(self) -> set[str]:
        """The images, by the start of their key, of which single cut points are kept."""
        return {name.split("-")[1] for name in self._here}

    def _file(self, image: str, call: str) -> Path:
        assert self.store.folder is not None
        place = digest_of_bytes(call)
        return self.store.folder / f"cut-{image[:NAMED]}-{place[:NAMED]}.safetensors"

    def write(self, image: str, call: str, cut: KeptCut) -> None:
        """Keep one cut point of the image with that ``image_key``, at the call with that ``call_key``.

        Raises ``OutputError`` when it cannot be written, or another run's file has appeared under its name.
        """
        if self.store.folder is None:
            return
        file = self._file(image, call)
        if file.exists() and file.name not in self._here:
            raise OutputError(
                f"{str(file)!r} appeared while this run was measuring that cut point: another run writes into the same "
                "folder; give each run a folder of its own"
            )
        self._here.add(file.name)
        about: dict[str, Any] = {"kinks": cut.kinks, "mark": cut.mark, "reason": cut.reason}
        about["facts"] = [fact.to_dict() for fact in cut.facts]
        about["spectrum"] = None if cut.spectrum is None else described(cut.spectrum)
        arrays = {} if cut.spectrum is None else arrays_of(cut.spectrum)
        beside = {"key": self.store.key, "image": image, "call": call, "about": json.dumps(about)}
        write_arrays(file, arrays, beside)

    def read(self, image: str, call: str) -> KeptCut | None:
        """What was kept of a cut point at an image, by their keys; ``None`` where nothing is, or another question."""
        if self.store.folder is None or not self.store.trusted:
            return None
        file = self._file(image, call)
        if file.name not in self._here or not file.exists():
            return None
        try:
            arrays, beside = read_arrays(file)
            if (beside.get("key"), beside.get("image")) != (self.store.key, image):
                self._other += 1
                return None
            about = json.loads(beside["about"])
            spectrum = None if about["spectrum"] is None else read_spectrum(arrays, about["spectrum"])
            facts = tuple(Fact.from_dict(one) for one in about["facts"])
            mark = None if about["mark"] is None else float(about["mark"])
            found = KeptCut(spectrum, int(about["kinks"]), mark, str(about["reason"]), facts)
        except (KeyError, ValueError, TypeError, RankscopeError):
            self._damaged += 1
            return None
        self._read += 1
        return found

    def distrust(self, name: str) -> None:
        """A kept cut point differs from a new product: nothing that was kept is used."""
        self.store.distrust(name, _UNIT)
        self._read = 0

    def discard(self, sample: Sample, calls: Sequence[ModuleCall]) -> None:
        """The image is kept as a whole now."""
        if self.store.folder is None:
            return
        image = image_key(sample)
        for call in calls:
            file = self._file(image, call_key(call))
            file.unlink(missing_ok=True)
            self._here.discard(file.name)

    def facts(self) -> list[Fact]:
        """What was read back, and what was measured again and why."""
        found = []
        if self._read:
            found.append(Fact(FactKind.CUTS_READ_BACK, {"kept": self._read}))
        for kind, number in ((FactKind.KEPT_DAMAGED, self._damaged), (FactKind.KEPT_OTHER, self._other)):
            if number:
                found.append(Fact(kind, {"count": number, "unit": _UNIT}))
        return found
