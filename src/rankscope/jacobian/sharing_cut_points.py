"""Cut points of a whole Jacobian, shared out over the processes of a group: the long ones first, one at a time."""

from __future__ import annotations

from collections.abc import Callable

from rankscope._base.errors import DataError
from rankscope._base.processes import Several
from rankscope.jacobian.kept_cut_points import NAMED, KeptCut, KeptCutPoints

__all__ = ["SharedCutPoints", "same_sample"]


def same_sample(index: int, key: str, other: str) -> None:
    """Raise ``DataError`` where two processes have another sample under one number."""
    if key != other:
        raise DataError(
            f"sample {index} is not the same in every process; give every process the same samples in the same order, "
            "as a shuffled or distributed sampler, or a random transform without a seed, does not"
        )


class SharedCutPoints:
    """``index`` is the image under way; while it is ``None``, what is measured is measured by this process alone."""

    def __init__(self, company: Several, kept: KeptCutPoints | None) -> None:
        self.company, self.kept = company, kept
        self.index: int | None = None
        self._arrived: dict[tuple[int, str], tuple[str, KeptCut]] = {}
        if company.writes:
            self._begun = set() if kept is None or kept.store.folder is None else kept.images()
            company.publish("begun images", self._begun)
        else:
            self._begun = set(company.known("begun images"))

    @property
    def writes(self) -> bool:
        return self.company.writes

    def done_before(self, image: str, read: Callable[[], list[str]]) -> list[str]:
        """The cut points of the image under way that an interrupted run kept; the first process reads them."""
        if image[:NAMED] not in self._begun:
            return []
        name = f"cut points of {self.index}"
        if self.writes:
            self.company.publish(name, read())
        done: list[str] = self.company.known(name)
        return done

    def claim(self, call: str) -> bool:
        """Whether this process is to measure the cut point."""
        return self.company.claim(f"{self.index} {call}")

    def give(self, image: str, call: str, cut: KeptCut) -> None:
        """One cut point is measured."""
        assert self.index is not None
        if self.writes:
            self.take(self.index, image, call, cut)
        else:
            self.company.send(("cut", self.index, image, call, cut))

    def take(self, index: int, image: str, call: str, cut: KeptCut) -> None:
        """In the first process: keep it, on disk too."""
        if self.kept is not None:
            self.kept.write(image, call, cut)
        self._arrived[index, call] = image, cut

    def wait_for(self, index: int, image: str, call: str) -> KeptCut:
        """The cut point, from whichever process measures it."""
        self.company.until(lambda: (index, call) in self._arrived)
        theirs, cut = self._arrived.pop((index, call))
        same_sample(index, image, theirs)
        return cut
