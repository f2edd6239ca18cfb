"""Taking up an earlier collection: only if it is whole, belongs to the same question, and a batch of it repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import OutputError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.collection_run import CollectionRun
from rankscope.features.path_layers import ChosenLayers
from rankscope.features.precision import kept_whole
from rankscope.features.shards import ShardStore
from rankscope.features.sources import Batch, batches
from rankscope.features.starting_workers import by_itself
from rankscope.slicing.batches import same_values
from rankscope.slicing.calls import Call
from rankscope.slicing.meaning import Meaning

__all__ = ["Resumed", "begin"]

_SAME = 1e-3  # of the largest value: another device or batch size rounds otherwise, another function differs by more


@dataclass
class Resumed:
    """The run, and what is to be said about what it goes on from."""

    run: CollectionRun
    layers: ChosenLayers
    total: int
    facts: list[Fact] = field(default_factory=list)

    def compare(
        self,
        model: nn.Module,
        dataset: Any,
        options: dict[str, Any],
        batch_size: int,
        forward: Callable[[Call], tuple[torch.Tensor, torch.Tensor]],
        meaning: Meaning,
    ) -> None:
        """Compute the first kept batch again; where it differs, begin anew. ``forward``: to (features, logits)."""
        if not self.run.shard:
            return
        why = self._difference(model, dataset, by_itself(options), batch_size, forward, meaning)
        if isinstance(why, Fact):
            self.facts.append(why)
        if isinstance(why, Fact) and why.kind is FactKind.KEPT_DIFFERS:
            self.run.close()
            self.run.store.clear()
            self.run = CollectionRun(self.run.store, 0, self.layers, self.total)
            return
        kept = {"kept": self.run.samples, "total": self.total, "unit": "sample"}
        self.facts.append(Fact(FactKind.READ_BACK, kept))

    def _difference(
        self, model: nn.Module, dataset: Any, options: Any, batch_size: int, forward: Any, meaning: Meaning
    ) -> Fact | None:
        kept = self.run.store.read(0)[0]
        batch, again = (_first(model, dataset, options, batch_size, meaning) for _ in range(2))
        if batch is None or batch.call is None or again is None or again.call is None or not len(kept["indices"]):
            return Fact(FactKind.KEPT_UNCHECKED, {"reason": "its first samples are unreadable"})
        places = {int(index): row for row, index in enumerate(kept["indices"])}
        rows = [row for row, index in enumerate(batch.indices.tolist()) if index in places]
        there = [places[index] for index in batch.indices.tolist() if index in places]
        differs = Fact(FactKind.KEPT_DIFFERS, {"where": f"sample {batch.after - 1}", "unit": "sample"}, caution=True)
        if not rows or not torch.equal(batch.labels[rows].long(), kept["labels"][there]):
            return differs
        if not same_values(batch.call, again.call):
            return Fact(FactKind.KEPT_UNCHECKED, {"reason": "the data set gives other values each time it is read"})
        for made, name in zip(forward(batch.call), ("features", "logits"), strict=True):
            a, b = kept_whole(made).cpu()[rows], kept[name][there]
            # an earlier version cut float64 to float32
            if (
                a.dtype != b.dtype
                or a.shape != b.shape
                or not float((a - b).abs().max()) <= _SAME * float(b.abs().max())
            ):
                return differs
        return None


def _first(model: nn.Module, dataset: Any, options: dict[str, Any], batch_size: int, meaning: Meaning) -> Batch | None:
    """The first batch, if it holds a sample that can be read."""
    read = batches(model, dataset, 0, batch_size=batch_size, num_workers=0, options=options, meaning=meaning)
    found = next(iter(read), None)
    return found if found is not None and len(found.indices) else None


def begin(store: ShardStore, layers: ChosenLayers, total: int) -> Resumed:
    """The run that goes on after the whole shards, or anew where one of them is damaged or missing."""
    whole = store.open()
    facts = []
    try:
        run = CollectionRun(store, whole, layers, total)
    except (OutputError, KeyError, TypeError, ValueError):
        store.clear()
        facts.append(Fact(FactKind.KEPT_DAMAGED, {"count": whole, "unit": "shard"}))
        run = CollectionRun(store, 0, layers, total)
    if store.missing:  # the moments are those of all samples before: a shard cannot be collected by itself
        lost = {"names": store.missing, "after": run.after, "unit": "sample"}
        facts.insert(0, Fact(FactKind.KEPT_MISSING, lost))
    return Resumed(run, layers, total, facts)
