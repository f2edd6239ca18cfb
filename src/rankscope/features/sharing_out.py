"""A collection shared out over the processes of a group: each passes some samples in a row, the first writes shards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import OutputError
from rankscope._base.facts import Fact
from rankscope._base.processes import Several
from rankscope.features.collection import Collection
from rankscope.features.collection_run import Block, CollectionRun
from rankscope.features.path_layers import ChosenLayers
from rankscope.features.shards import ShardStore
from rankscope.features.sources import Skipped

__all__ = ["SharedRun", "same_collection"]

_AHEAD = 2  # shards for each process that may wait for an earlier one


class _Caught(ShardStore):
    """In place of a folder: keeps the one shard that a run writes."""

    def __init__(self) -> None:
        super().__init__(Path(), {})
        self.shard: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = {}, {}
        self.skipped: tuple[Skipped, ...] = ()
        self.calling: dict[str, int] = {}

    def append(
        self,
        index: int,
        tensors: Mapping[str, torch.Tensor],
        moments: Mapping[str, torch.Tensor],
        notes: dict[str, Any],
    ) -> None:
        self.shard = (
            {key: value.cpu() for key, value in tensors.items()},
            {key: value.cpu() for key, value in moments.items()},
        )
        self.skipped = tuple(Skipped(**one) for one in notes["skipped"])
        self.calling = dict(notes["calling"])


class SharedRun:
    """The samples from where an earlier run stopped, in blocks of one shard; ``run`` is that of the first process."""

    def __init__(
        self,
        company: Several,
        run: CollectionRun | None,
        layers: ChosenLayers,
        total: int,
        step: int,
        head: tuple[nn.Module, torch.device],
    ) -> None:
        self.company, self.run, self.layers, self.total, self.head = company, run, layers, total, head
        self._taken = 0
        self._waiting: dict[int, Block] = {}
        self._taking = threading.Lock()
        if run is not None:
            company.publish("start", run.after)
            company.listen(lambda rank, message: self._take(*message))
        self.starts = range(int(company.known("start")), total, step)

    def measure(self, fill: Callable[[CollectionRun, int, int], None]) -> None:
        """Measure the blocks that no other process has; ``fill`` passes the samples from one number to another."""
        for number, start in self._own():
            stop = min(start + self.starts.step, self.total)
            caught = _Caught()
            made = CollectionRun(caught, 0, self.layers, self.total)
            try:
                fill(made, start, stop)
                made.flush(*self.head)
                made.wait_for_writing()
            finally:
                made.close()
            skipped = (*caught.skipped, *made.skipped)
            block = Block(*caught.shard, skipped, caught.calling, stop, made.layers, made.about)
            if self.run is None:
                self.company.send((number, block))
            else:
                self._take(number, block)
        if self.run is not None:
            self.company.until(lambda: self._taken == len(self.starts))
            self.company.receive()

    def _own(self) -> Iterator[tuple[int, int]]:
        for number, start in enumerate(self.starts):
            self.company.check()
            late = number - _AHEAD * self.company.size
            if late >= 0:
                self.company.known(f"written {late}")
            if self.company.claim(f"shard {number}"):
                yield number, start

    def _take(self, number: int, block: Block) -> None:
        """In the first process, in a thread too: write the shards that are next."""
        assert self.run is not None
        with self._taking:
            self._waiting[number] = block
            while self._taken in self._waiting:
                self.run.take(self._waiting.pop(self._taken), *self.head)
                self.company.publish(f"written {self._taken}", True)
                self._taken += 1


def same_collection(company: Several, found: Collection | None, folder: Path) -> Collection:
    """What the first process has found, in every process: read from the folder where that can be seen."""
    if found is not None:
        company.publish("collected", (found.resumed, found.facts, ShardStore.read_manifest(found.folder)))
        if not all(company.known(f"folder seen by {rank}") for rank in range(1, company.size)):
            company.same(found)
        return found
    resumed, facts, fingerprint = company.known("collected")
    try:
        seen = ShardStore.read_manifest(folder) == fingerprint
    except OutputError:
        seen = False
    company.publish(f"folder seen by {company.rank}", seen)
    if not seen:
        sent: Collection = company.result()
        return sent
    return replace(Collection.load(folder), resumed=int(resumed), facts=tuple[Fact, ...](facts))
