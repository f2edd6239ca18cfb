"""Finished images on disk, so that a stopped run continues where it was, and never with another model's numbers."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rankscope._base.checks import path_of
from rankscope._base.errors import OutputError, RankscopeError
from rankscope._base.facts import Fact, FactKind, unsaid
from rankscope._base.files import FolderLock, digest_of_bytes, read_about, read_arrays, write_arrays
from rankscope._base.identity import Identity, identity_of
from rankscope._base.provenance import versions
from rankscope.jacobian.spectrum_files import arrays_of, described, read_spectrum
from rankscope.slicing import Sample
from rankscope.spectra import Spectrum
from rankscope.spectra.density import AnySpectrum, SpectralDensity

__all__ = ["Checkpoint", "Kept", "image_key", "kept_images"]

_ROUNDING = 1e-6  # of σ_1, beside the error bounds of both: another device's products
_KINKED = 1e-2  # where rounding may have put a unit on the other side of its kink


@dataclass(frozen=True)
class Kept:
    """What one image left: a spectrum a cut point, units moved across a kink, and what was found out on the way."""

    spectra: list[AnySpectrum | None]
    kinks: int
    facts: tuple[Fact, ...]
    uncalled: tuple[int, ...] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    marks: Mapping[int, float] = field(default_factory=dict)
    """By cut point, what a single product of a whole Jacobian gave (``KeptCut.mark``)."""

    def agrees(self, spectra: Sequence[AnySpectrum | None], kinks: int) -> bool:
        """Whether a new measurement of the same image found the same, up to the error of both."""
        if len(spectra) != len(self.spectra):
            return False
        rounding = _KINKED if self.kinks or kinks else _ROUNDING
        return all(_same(a, b, rounding) for a, b in zip(self.spectra, spectra, strict=True))


def _same(one: AnySpectrum | None, other: AnySpectrum | None, rounding: float) -> bool:
    if isinstance(one, SpectralDensity) and isinstance(other, SpectralDensity):
        return one.agrees(other, rounding)
    if not isinstance(one, Spectrum) or not isinstance(other, Spectrum):
        return one is other
    a, b = np.asarray(one.singular_values), np.asarray(other.singular_values)
    if a.shape != b.shape or one.shape != other.shape:
        return False
    top = max(float(a.max(initial=0)), float(b.max(initial=0)))
    bound = sum(s.error_bound if math.isfinite(s.error_bound) else 1e-4 * top for s in (one, other))
    # a square is known to square_error, so a value below its root is known to that root only
    floor = math.sqrt(sum(max(s.square_error, 0.0) for s in (one, other)))
    return bool((np.abs(a - b) <= bound + floor + rounding * top).all())


class Checkpoint:
    """One safetensors file per image. Use it as a context: inside, no other run uses the folder.

    A file is used again only for the same model, settings and image, and with the checksum that it was written with.
    ``facts`` says afterwards what was read back, and what was not and why.
    """

    def __init__(self, path: str | Path | None, model: Identity, settings: Mapping[str, Any]) -> None:
        self.folder = None if path is None else path_of(path, "checkpoint")
        plain = {**settings, "rankscope": versions().get("rankscope"), "model": model.key}
        self.key = digest_of_bytes(json.dumps(plain, sort_keys=True, default=repr))
        self.unreadable = model.unreadable
        self.compared = False  # a kept image was measured again and is the same
        self._lock = None if self.folder is None else FolderLock(self.folder)
        self._here: set[str] = set()  # what lay in the folder before this run, and what it wrote
        self.trusted = True
        self._read = self._damaged = self._other = 0
        self._differs: tuple[str, str] | None = None  # where, and what was compared
        self._facts: list[Fact] = []
        self._useless: dict[int, bool] = {}  # by image, whether its file is damaged; else it is of another question

    def __enter__(self) -> Checkpoint:
        if self._lock is not None and self.folder is not None:
            self._lock.__enter__()
            self._here = {file.name for file in self.folder.glob("image-*.safetensors")}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.__exit__(kind, error, trace)

    def _file(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"image-{index:06d}.safetensors"

    def write(
        self,
        index: int,
        image: str,
        row: Sequence[AnySpectrum | None],
        kinks: int,
        facts: Sequence[Fact] = (),
        uncalled: Sequence[int] = (),
        reasons: Mapping[int, str] = {},
        marks: Mapping[int, float] = {},
    ) -> None:
        """Keep one image's spectra; ``image`` is its ``image_key``.

        Raises
        ------
        OutputError
            When it cannot be written, or another run's file has appeared under its name.
        """
        if self.folder is None:
            return
        file = self._file(index)
        if file.exists() and file.name not in self._here:
            raise OutputError(
                f"{str(file)!r} appeared while this run was measuring that image: another run writes into the same "
                "folder; give each run a folder of its own"
            )
        self._here.add(file.name)
        arrays: dict[str, Any] = {}
        about: dict[str, Any] = {"kinks": kinks, "spectra": [], "facts": [fact.to_dict() for fact in facts]}
        about["uncalled"] = list(uncalled)
        about["reasons"] = list(reasons.items())
        about["marks"] = list(marks.items())
        for k, s in enumerate(row):
            if s is None:
                about["spectra"].append(None)
                continue
            about["spectra"].append(described(s))
            arrays |= {f"{k}.{name}": array for name, array in arrays_of(s).items()}
        write_arrays(file, arrays, {"key": self.key, "image": image, "about": json.dumps(about)})

    def read(self, index: int, sample: Sample) -> Kept | None:
        """One image's spectra, or ``None`` where there are none for these settings, this model and this image."""
        if self.folder is None or not self.trusted or self._file(index).name not in self._here:
            return None
        try:
            arrays, about = read_arrays(self._file(index))
            if about.get("key") != self.key or about.get("image") != image_key(sample):
                self._other += 1
                return None
            kept = _kept(arrays, json.loads(about["about"]))
        except (KeyError, ValueError, TypeError, RankscopeError):
            self._damaged += 1
            return None
        self._read += 1
        self._facts += unsaid(kept.facts, self._facts)
        return kept

    def usable(self) -> set[int]:
        """The images of which something is kept for this question, as the files say before their content is read."""
        found = set()
        for name in self._here:
            index = int(Path(name).stem.partition("-")[2])
            about = read_about(self._file(index))
            if about is not None and about.get("key") == self.key:
                found.add(index)
            else:
                self._useless[index] = about is None
        return found

    def passed_over(self, index: int) -> None:
        """An image is measured again because what is kept of it, if anything, is not usable."""
        damaged = self._useless.pop(index, None)
        if damaged is not None:
            self._damaged += damaged
            self._other += not damaged

    def distrust(self, name: str, unit: str = "image") -> None:
        """A kept image was measured again and differs: nothing that was kept is used."""
        self.trusted, self._differs, self._read, self._facts = False, (name, unit), 0, []

    def with_kept(self, found: Sequence[Fact]) -> list[Fact]:
        """What was found out when the kept images were measured, and what this run found beside it."""
        return [*self._facts, *unsaid(found, self._facts)]

    def facts(self, total: int) -> list[Fact]:
        """What was read back from an earlier run, of ``total`` images, and what was measured again and why."""
        found = []
        if self._read:
            found.append(Fact(FactKind.READ_BACK, {"kept": self._read, "total": total, "unit": "image"}))
        if self._damaged:
            found.append(Fact(FactKind.KEPT_DAMAGED, {"count": self._damaged, "unit": "image"}))
        if self.unreadable and self._other:
            found.append(Fact(FactKind.KEPT_INCOMPARABLE, {"types": self.unreadable, "owner": "model"}))
        elif self._other:
            found.append(Fact(FactKind.KEPT_OTHER, {"count": self._other, "unit": "image"}))
        if self._differs:
            found.append(
                Fact(FactKind.KEPT_DIFFERS, {"where": self._differs[0], "unit": self._differs[1]}, caution=True)
            )
        return found


def kept_images(folder: Path) -> int:
    """Number of images that a folder keeps of one question: that of the file that was written last."""
    written: dict[Path, int] = {}
    for file in folder.glob("image-*.safetensors"):
        with contextlib.suppress(OSError):
            written[file] = file.stat().st_mtime_ns
    keys = [(read_about(file) or {}).get("key") for file in sorted(written, key=written.__getitem__)]
    return sum(key is not None and key == keys[-1] for key in keys)


def image_key(sample: Sample) -> str:
    """All that the model is called with."""
    return identity_of({f.name: getattr(sample, f.name) for f in fields(sample) if f.name != "name"}).key


def _kept(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> Kept:
    row: list[AnySpectrum | None] = []
    for k, entry in enumerate(about["spectra"]):
        if entry is None:
            row.append(None)
            continue
        own = {name.removeprefix(f"{k}."): array for name, array in arrays.items() if name.startswith(f"{k}.")}
        row.append(read_spectrum(own, entry))
    uncalled = tuple(int(k) for k in about.get("uncalled", ()))  # absent from files of earlier versions
    reasons = {int(k): str(why) for k, why in about.get("reasons", ())}
    marks = {int(k): float(mark) for k, mark in about.get("marks", ())}
    facts = tuple(Fact.from_dict(one) for one in about["facts"])
    return Kept(row, int(about["kinks"]), facts, uncalled, reasons, marks)
