"""What the samples of one measurement leave, by number: swept in batches, read back, kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rankscope.jacobian.checkpoint import Checkpoint, Kept, image_key
from rankscope.jacobian.finish import Finished
from rankscope.jacobian.measurers import Measurers, layout
from rankscope.slicing import Sample
from rankscope.spectra.density import AnySpectrum

__all__ = ["Collected"]

_AHEAD = 3  # batches that may be under way beside a GPU: one swept, one settled, one whose eigenvalues are computed


class Collected:
    """Results by image index; a few batches may still be under way while the next is swept."""

    def __init__(self, measurers: Measurers, store: Checkpoint, done: Callable[[int], None]) -> None:
        self.measurers, self.store, self.done = measurers, store, done
        self.spectra: dict[int, list[AnySpectrum | None]] = {}
        self.kinks: dict[int, int] = {}
        self.uncalled: dict[int, tuple[int, ...]] = {}
        self.reasons: dict[int, dict[int, str]] = {}
        self._waiting: list[tuple[int, Sample]] = []
        self._under_way: deque[tuple[list[tuple[int, Sample]], Callable[[], list[Finished]]]] = deque()

    def keep(self, index: int, found: Kept | Finished) -> None:
        self.spectra[index], self.kinks[index], self.uncalled[index] = found.spectra, found.kinks, found.uncalled
        self.reasons[index] = dict(found.reasons)
        self.done(index)

    def restore(self, index: int, sample: Sample, name: str) -> bool:
        """Take over what an earlier run kept of this image. The first such image is measured again and compared."""
        kept = self.store.read(index, sample)
        if kept is None:
            return False
        if not self.store.compared and not self._confirmed(sample, kept):
            again = self._alone(sample)
            if not kept.agrees(again.spectra, again.kinks):
                self.store.distrust(name)
                self._write(index, sample, again)
                return True
        self.store.compared = True
        self.keep(index, kept)
        return True

    def _confirmed(self, sample: Sample, kept: Kept) -> bool:
        """Whether single products already show that nothing has changed, where a whole image takes long."""
        if not kept.marks:
            return False
        self.sweep()
        self.finish()
        return self.measurers.of(sample).confirms(sample, kept.marks, kept.kinks)

    def _key(self, index: int, sample: Sample) -> str:
        """The image's name on disk, where it is kept."""
        return "" if self.store.folder is None else image_key(sample)

    def arrives(self, index: int, given: Sample) -> None:
        """The next sample, where it was given: before it is moved to the device."""

    def _alone(self, sample: Sample) -> Finished:
        self.sweep()
        self.finish()
        measurer = self.measurers.of(sample)
        measurer.batch_size(sample, 1)
        return measurer.measure([sample])()[0]

    def add(self, index: int, sample: Sample, more: int) -> None:
        """Take one image; sweep when enough wait for one sweep, with ``more`` still to come."""
        if self._waiting and layout(self._waiting[0][1]) != layout(sample):
            self.sweep()
        self._waiting.append((index, sample))
        if len(self._waiting) >= self.measurers.of(sample).batch_size(sample, len(self._waiting) + more):
            self.sweep()

    def sweep(self) -> None:
        """Sweep the images that wait, and take in batches that were swept before."""
        if not self._waiting:
            return
        self.measurers.settle()
        batch, self._waiting = self._waiting, []
        result = self.measurers.of(batch[0][1]).measure([s for _, s in batch])
        self._under_way.append((batch, result))
        while len(self._under_way) > self.ahead:
            self._take_in()

    @property
    def ahead(self) -> int:
        """How many batches may be under way while the next is swept."""
        return _AHEAD if self.measurers.settings.device.type == "cuda" else 0

    def finish(self) -> None:
        """Take in everything that was swept."""
        while self._under_way:
            self._take_in()

    def meet(self) -> None:
        """Every image has been taken or restored: nothing is to come from elsewhere."""

    def _take_in(self) -> None:
        batch, result = self._under_way.popleft()
        for (index, sample), finished in zip(batch, result(), strict=True):
            self._write(index, sample, finished)

    def _write(self, index: int, sample: Sample, finished: Finished) -> None:
        spectra, kinks, uncalled = finished.spectra, finished.kinks, finished.uncalled
        beside = finished.reasons, finished.marks
        self.store.write(index, self._key(index, sample), spectra, kinks, self.measurers.facts, uncalled, *beside)
        self.measurers.whole(sample)
        self.keep(index, finished)
