"""Images shared out over the processes of a group: each takes the next one that nobody has, the first process writes.

Every process reads all samples, in the same order, and prepares with the first of each shape, so that all push tangents
alike. A result carries the key of its sample, which the first process compares with its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from rankscope._base.errors import DataError
from rankscope._base.facts import Fact
from rankscope._base.processes import Several
from rankscope.jacobian.checkpoint import Checkpoint, image_key
from rankscope.jacobian.collected import Collected
from rankscope.jacobian.findings import Findings, merged
from rankscope.jacobian.finish import Finished
from rankscope.jacobian.full_measurer import FullMeasurer
from rankscope.jacobian.measurers import Measurers, layout
from rankscope.jacobian.sharing_cut_points import same_sample
from rankscope.linear.derivative import Derivative
from rankscope.slicing import Sample

__all__ = ["SharedOut", "collected_by"]

_AHEAD = 2  # whole Jacobians of which other processes may still measure cut points
_FIRST = 64  # shapes whose first sample stays at hand
_ASIDE = 64  # samples that wait to hear whether what was kept of them can be used


def collected_by(
    company: Several | None, measurers: Measurers, store: Checkpoint, done: Callable[[int], None]
) -> Collected:
    """By this process alone, or by all processes of a group."""
    return Collected(measurers, store, done) if company is None else SharedOut(measurers, store, done, company)


class SharedOut(Collected):
    """The same as in one process, in each of several. Only the first has results by number, in the end all of them."""

    def __init__(
        self,
        measurers: Measurers,
        store: Checkpoint,
        done: Callable[[int], None],
        company: Several,
    ) -> None:
        super().__init__(measurers, store, done)
        self.company, self.cuts = company, None if measurers.full is None else measurers.full.shared
        self._count = 0
        self._first: dict[tuple[Any, ...], Sample] = {}  # of the shapes that came last
        self._shapes: dict[tuple[Any, ...], None] = {}  # in the order in which they came
        self._findings: dict[tuple[Any, ...], Findings] = {}
        self._seen: WeakKeyDictionary[Derivative, tuple[int, int]] = WeakKeyDictionary()
        self._last: tuple[Sample, int] | None = None  # swept, and not yet looked at: a GPU may be at work on it
        self._keys: dict[int, str] = {}
        self._aside: deque[tuple[int, Sample]] = deque()
        self._arrived: deque[tuple[int, str, Finished]] = deque()
        self._through: dict[int, tuple[int, dict[tuple[Any, ...], Findings]]] = {}
        if company.writes:
            self._kept = store.usable() if store.folder is not None else set()
            company.publish("kept images", self._kept)
            company.listen(self._receive)
        else:
            self._kept = set(company.known("kept images"))

    def _receive(self, rank: int, message: Any) -> None:
        """In a thread of the first process: what another one has finished is on disk at once."""
        kind, *rest = message
        if kind == "image":
            index, key, finished, facts = rest
            self._keep_on_disk(index, key, finished, facts)
            self._arrived.append((index, key, finished))
        elif kind == "cut":
            assert self.cuts is not None
            self.cuts.take(*rest)
        else:
            self._through[rank] = rest[0], rest[1]

    def _keep_on_disk(self, index: int, key: str, one: Finished, facts: list[Fact]) -> None:
        self.store.write(index, key, one.spectra, one.kinks, facts, one.uncalled, one.reasons, one.marks)

    def _take_arrived(self) -> None:
        while self._arrived:
            index, key, finished = self._arrived.popleft()
            if index in self._keys:
                same_sample(index, self._keys[index], key)
            self._keys[index] = key
            self.keep(index, finished)

    def arrives(self, index: int, given: Sample) -> None:
        # from the host: a copy from the GPU would wait for everything that is under way there
        key = image_key(given.to(torch.device("cpu"), self.measurers.settings.dtype))
        same_sample(index, self._keys.setdefault(index, key), key)

    def _key(self, index: int, sample: Sample) -> str:
        return self._keys[index]

    def restore(self, index: int, sample: Sample, name: str) -> bool:
        """Whether nothing is to be done here: another process has the image, or an earlier run has kept it."""
        self.company.check()
        self._count = index + 1
        shape = layout(sample)
        if shape not in self._shapes:
            self._shapes[shape] = None
            self._first[shape] = sample
            while len(self._first) > _FIRST:
                self._first.pop(next(iter(self._first)))
        if self.company.writes:
            self._take_arrived()
            if index in self._kept:
                restored = super().restore(index, sample, name)
                self.company.publish(f"restored {index}", restored)
                if restored:
                    return True
            self.store.passed_over(index)
        elif index in self._kept:
            self._aside.append((index, sample))
            self._look_aside(_ASIDE)
            return True
        return not self._mine(index, sample)

    def _mine(self, index: int, sample: Sample) -> bool:
        """Whether this process measures the image, or all of them measure its cut points."""
        if self.cuts is not None:
            self._prepare(sample)
            measurer = self.measurers.of(sample)
            if isinstance(measurer, FullMeasurer) and measurer.by_cut_points:
                return True
        return self.company.claim(f"image {index}")

    def _look_aside(self, most: int) -> None:
        """Take up the samples of which nothing usable was kept; wait while more than ``most`` are in doubt."""
        while self._aside:
            index, sample = self._aside[0]
            if len(self._aside) <= most and not self.company.published(f"restored {index}"):
                return
            restored = self.company.known(f"restored {index}")
            self._aside.popleft()
            if not restored and self._mine(index, sample):
                self.add(index, sample, 0)

    def _prepare(self, sample: Sample) -> None:
        """What holds for all samples of a shape is found out with the first of them, in every process."""
        if not self.measurers.at_hand(sample):
            self._settle_last()  # its measurer may have to make room
            first = self._first.get(layout(sample), sample)
            self.measurers.of(first).batch_size(first, 1)
            self._look(first, -1)

    def _look(self, sample: Sample, index: int) -> None:
        found = self._findings.setdefault(layout(sample), Findings())
        one = self.measurers.of(sample)
        self._seen[one.derivative] = found.look(one, index, self._seen.get(one.derivative, (0, 0)))

    def _look_for(self, index: int | None) -> None:
        if self.cuts is not None:
            self.cuts.index = index

    def _settle_last(self) -> None:
        """What is found out of the image swept last belongs to that image in every process.

        It is decided when the next one is to be swept, as in one process: until then the device works and the host
        reads on.
        """
        if self._last is not None:
            self.measurers.settle()
            self._look(*self._last)
            self._last = None

    def _alone(self, sample: Sample) -> Finished:
        self.sweep()
        self._settle_last()
        self._prepare(sample)
        found = super()._alone(sample)
        self._look(sample, self._count - 1)
        return found

    def add(self, index: int, sample: Sample, more: int) -> None:
        self._prepare(sample)
        # all processes come to their last image at about the same time
        share = -(-(len(self._waiting) + 1 + more) // self.company.size)
        super().add(index, sample, max(share - len(self._waiting) - 1, 0))

    def sweep(self) -> None:
        if not self._waiting:
            return
        self._settle_last()
        (index, sample), *_ = self._waiting
        self._look_for(index)
        try:
            super().sweep()
        finally:
            self._look_for(None)
        self._last = sample, index

    @property
    def ahead(self) -> int:
        return max(super().ahead, 0 if self.cuts is None else _AHEAD)

    def _write(self, index: int, sample: Sample, finished: Finished) -> None:
        if self.company.writes:
            super()._write(index, sample, finished)
        elif not finished.elsewhere:
            self.company.send(("image", index, self._keys[index], finished, self.measurers.facts))

    def finish(self) -> None:
        super().finish()
        if self.company.writes:
            self.company.receive()
            self._take_arrived()

    def meet(self) -> None:
        """In the first process: wait for what the others have; they say what they have seen."""
        self._look_aside(0)
        self.sweep()
        self.finish()
        self._settle_last()
        if not self.company.writes:
            self.company.send(("through", self._count, self._findings))
            return
        self.company.until(self._all_through)
        self.company.receive()
        self._take_arrived()
        for rank, (count, _) in self._through.items():
            if count != self._count:
                raise DataError(f"process 0 has {self._count} samples and process {rank} {count}; give both the same")
        everyone = [self._findings, *(self._through[rank][1] for rank in sorted(self._through))]
        shown = [merged([one[shape] for one in everyone if shape in one]) for shape in self._shapes]
        self.measurers.take_over([one for one in shown if one is not None])

    def _all_through(self) -> bool:
        self._take_arrived()
        return len(self._through) == self.company.size - 1
