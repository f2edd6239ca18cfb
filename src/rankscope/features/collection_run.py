"""A collection as it is made: batches checked, added to the moments, and written a shard at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import CutPointError, DataError, ModelError
from rankscope._base.facts import Fact
from rankscope.features.collection import Collection, add_states, joined, renamed, restored
from rankscope.features.counted_rows import without_rows
from rankscope.features.cut_names import not_called
from rankscope.features.heads import linear_parts
from rankscope.features.moments import CentredMoments
from rankscope.features.path_layers import ChosenLayers
from rankscope.features.pipeline import InFlight, launch
from rankscope.features.precision import kept_whole
from rankscope.features.shards import ShardStore
from rankscope.features.sources import Batch, Skipped
from rankscope.slicing import CutPointsLike

__all__ = ["MOMENTS_LIMIT", "Block", "CollectionRun"]

MOMENTS_LIMIT = 16_384  # widest layer whose covariance is kept while collecting: 2.1 GB
_PER_SHAPE = 'measure each shape by itself, or give reduce="pool" where the channels stay the same'
_HELD = 1 << 24  # entries of rows that wait for their product: 64 MB a layer


@dataclass(frozen=True, eq=False)
class Block:
    """Some samples in a row: what a shard holds of them, and the moments of these samples alone; empty where none was
    readable.
    """

    tensors: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor]
    skipped: tuple[Skipped, ...]
    calling: dict[str, int]
    """By layer, the samples that call it."""
    after: int
    layers: ChosenLayers
    facts: tuple[Fact, ...]


class CollectionRun:
    """The shard being filled, and the moments of all samples so far."""

    def __init__(self, store: ShardStore, whole: int, layers: ChosenLayers, total: int) -> None:
        self.store, self.shard, self.total = store, whole, total
        self.first = self.layers = layers
        self.head: tuple[torch.Tensor, torch.Tensor] | None = None
        self.samples = self.after = self.pending = 0
        self.moments: dict[str, CentredMoments] = {}
        self._open: dict[str, list[torch.Tensor]] = {}
        self._flights: list[InFlight] = []
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._roundoff: dict[str, float] = {}
        self._square: dict[str, torch.Tensor] = {}
        self._head_checked = False
        self._widths: dict[str, int] = {}
        self.about: tuple[Fact, ...] = ()  # facts on the model and the data, kept with each shard
        self.beside = False
        # beside a GPU, writing (and flushing to disk) goes on while the next shard is filled
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._skipped: list[Skipped] = []
        self._calling: Counter[str] = Counter()  # by layer, the samples that call it
        self._unwritten: Counter[str] = Counter()  # the same, of the open shard
        for index in range(whole):
            tensors, notes = store.read(index)
            self.samples += len(tensors["labels"])
            self.after = int(notes["after"])
            # shards of earlier versions hold samples that call every layer
            self._calling.update(notes.get("calling", dict.fromkeys(self.cut_points, len(tensors["labels"]))))
            if "layers" in notes:
                self.layers = layers.joined(ChosenLayers.from_dict(notes["layers"]))
        if whole:
            self.moments, self.head = restored(store, whole - 1, self.cut_points)

    @property
    def cut_points(self) -> list[str]:
        """The layers whose moments are kept."""
        return self.layers.names

    def follow(self, layers: ChosenLayers) -> None:
        """Keep the moments of these layers from now on, and no longer those of layers that are left out."""
        if layers == self.layers:
            return
        self.layers = layers
        for name in self.moments.keys() - set(layers.names):
            del self.moments[name]
            self._rows.pop(name, None)

    def launch(
        self,
        batch: Batch,
        outputs: dict[str, torch.Tensor],
        logits: torch.Tensor,
        layer: nn.Module,
        head: str,
        coarse: Mapping[str, tuple[float, torch.Tensor | None]],
        count: Mapping[str, int],
    ) -> None:
        """Take over what a forward pass left, without waiting for it.

        ``count`` says of layers how many samples of the batch call them, where not all do.

        ``coarse`` says of each layer how its output's dtype rounds, and relative to which ‖X‖²_F where that is not the
        norm of its rows.
        """
        if "<input>" not in outputs:
            raise CutPointError(f"the head {head!r} is never called in the forward pass; choose another")
        features, logits = kept_whole(outputs["<input>"].flatten(1)), kept_whole(logits)
        labels = batch.labels
        if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(features):
            raise DataError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give one class index per sample"
            )
        rows = {name: outputs[name] for name in self.cut_points if name in outputs}
        for name, values in {"the features before the head": features, **rows}.items():
            known = self.moments[name].width if name in self.moments else values.shape[1]
            known = self._widths.setdefault(name, known)
            if values.shape[1] != known:
                raise DataError(
                    f"{name}: {values.shape[1]:,} dimensions for sample {int(batch.indices[0])} and {known:,} before, "
                    f"for samples of another shape; {_PER_SHAPE}"
                )
        for name, values in rows.items():
            if values.shape[1] > MOMENTS_LIMIT:
                width = values.shape[1]
                raise CutPointError(
                    f"{name}: {width:,} dimensions; a covariance would take {8 * width**2 / 1e9:,.1f} GB: use "
                    'reduce="pool" or "positions", or feature_rank(model, …), which sketches wide layers'
                )
        for name in rows:
            roundoff, square = coarse[name]
            self._roundoff[name] = max(roundoff, self._roundoff.get(name, 0.0))
            if square is not None:
                self._square[name] = self._square[name] + square if name in self._square else square
        calling = {name: count.get(name, len(labels)) for name in rows}
        self._calling.update(calling)
        self._unwritten.update(calling)
        self._flights.append(launch(batch, rows, features, logits))
        if not self._head_checked:
            self._flights[-1].check()  # a NaN is told as such, not as a head that does not fit
            self._check_head(features, logits, layer, head)
            self._head_checked = True
        self.pending += len(labels)

    def settle(self, *, waiting: int = 0) -> None:
        """Check and store what has been launched, all but the last ``waiting`` batches."""
        while len(self._flights) > waiting:
            flight = self._flights.pop(0)
            flight.check()
            for name, rows in flight.rows.items():
                if name not in self.cut_points:  # left out since
                    continue
                self._rows.setdefault(name, []).append(rows)
                # one product for several batches, while what waits for it stays small
                held = sum(len(part) for part in self._rows[name])
                if held >= max(rows.shape[1], 1024) or held * rows.shape[1] > _HELD:
                    self._accumulate(name)
            values = {"features": flight.features, "logits": flight.logits, "labels": flight.batch.labels.long()}
            for key, value in (values | {"indices": flight.batch.indices}).items():
                self._open.setdefault(key, []).append(value)
            self.samples += len(flight.batch.labels)

    def _accumulate(self, name: str) -> None:
        parts = self._rows.pop(name, [])
        if not parts:
            return
        rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        if name not in self.moments:
            self.moments[name] = CentredMoments(rows.shape[1], name=name, sync_on_compute=False)
        if self.moments[name].mean.device != rows.device:
            self.moments[name].to(rows.device)
        self.moments[name].add_checked(rows)

    @staticmethod
    def _check_head(features: torch.Tensor, logits: torch.Tensor, layer: nn.Module, head: str) -> None:
        parts = linear_parts(layer, features.shape[1])
        if parts is None:
            raise ModelError(f"the head {head!r} is a {type(layer).__name__}, not a linear layer; name another one")
        weight, bias = (part.to(torch.promote_types(part.dtype, features.dtype)) for part in parts)
        made = torch.addmm(bias, features.to(weight.dtype), weight.T)
        difference = float((made - logits).abs().max()) if made.shape == logits.shape else float("inf")
        scale = max(float(logits.abs().max()), 1e-30)
        if not difference <= 1e-2 * scale:
            raise ModelError(
                f"the output of {head!r} is not what the model returns (differs by {difference:.3g}, logits reach "
                f"{scale:.3g}); name the final linear layer with head="
            )

    def skip(self, batch: Batch) -> None:
        self._skipped += batch.skipped
        self.after = batch.after

    def flush(self, layer: nn.Module, device: torch.device) -> None:
        """Write the open shard, if there is anything in it."""
        self.settle()
        self.wait_for_writing()
        for name in self.cut_points:
            self._accumulate(name)
        if self._open:
            tensors = {key: torch.cat(values) for key, values in self._open.items()}
        elif self._skipped and self.shard:  # the last samples of all were unreadable: a shard of none says so
            tensors = {key: values[:0] for key, values in self.store.read(self.shard - 1)[0].items()}
        else:
            return
        for name, moments in self.moments.items():
            moments.roundoff = max(moments.roundoff, self._roundoff.get(name, 0.0))
            moments.magnitude += float(self._square.pop(name, 0.0))
        states = {
            f"{n}/{key}": getattr(m, key) for n, m in self.moments.items() for key in ("count", "mean", "scatter")
        }
        states |= {
            f"{n}/{key}": torch.tensor(getattr(m, key), dtype=torch.float64)
            for n, m in self.moments.items()
            for key in ("roundoff", "magnitude")
        }
        parts = linear_parts(layer, tensors["features"].shape[1])
        assert parts is not None  # checked with the first batch
        self.head = parts[0].cpu(), parts[1].cpu()
        states |= {"<head>/weight": self.head[0], "<head>/bias": self.head[1]}
        notes = {"after": self.after, "total": self.total, "skipped": [vars(one) for one in self._skipped]}
        notes["facts"] = [fact.to_dict() for fact in self.about]
        notes["calling"] = dict(self._unwritten)
        if self.layers != self.first:
            notes["layers"] = self.layers.to_dict()
        if self.beside:
            # moments go on changing in place: the thread writes copies, and waits for these
            states = {key: state.to("cpu", non_blocking=True, copy=True) for key, state in states.items()}
            copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
            self._writing = self._writer.submit(self._append, copied, self.shard, tensors, states, notes)
        else:
            self.store.append(self.shard, tensors, states, notes)
        self.shard += 1
        self.pending = 0
        self._open, self._skipped, self._unwritten = {}, [], Counter()

    def take(self, block: Block, layer: nn.Module, device: torch.device) -> None:
        """Write what another run made of the next samples, as a shard of this one."""
        self.follow(self.layers.joined(block.layers))
        self.about = (*self.about, *(fact for fact in block.facts if fact not in self.about))
        for name, known in self.moments.items():
            width = len(block.states.get(f"{name}/mean", known.mean))
            if width != known.width:
                sample = int(block.tensors["indices"][0])
                raise DataError(
                    f"{name}: {width:,} dimensions for sample {sample} and {known.width:,} before, for samples of "
                    f"another shape; {_PER_SHAPE}"
                )
        add_states(self.moments, block.states, self.cut_points)
        self._open = {key: [value] for key, value in block.tensors.items()}
        self.samples += len(block.tensors.get("labels", ()))
        self._calling.update(block.calling)
        self._unwritten.update(block.calling)
        self._skipped += block.skipped
        self.after = block.after
        self.flush(layer, device)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Samples that could not be read and are in no shard yet."""
        return tuple(self._skipped)

    def _append(self, copied: Any, *shard: Any) -> None:
        if copied is not None:
            copied.synchronize()
        self.store.append(*shard)

    def wait_for_writing(self) -> None:
        """Let the shard that is being written come to its end; raises what writing it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Leave no thread writing, also after an error: the next run of the same folder must find it at rest."""
        self._writer.shutdown(wait=True)

    def result(
        self, resumed: int, facts: tuple[Fact, ...], model: nn.Module, wanted: CutPointsLike | None
    ) -> Collection:
        """All that was collected at what ``wanted`` names in the model."""
        self.wait_for_writing()
        if not self.shard or self.head is None:
            reasons = f"; the first: {self._skipped[0].name}: {self._skipped[0].reason}" if self._skipped else ""
            raise DataError(f"the data hold no readable sample ({len(self._skipped)} skipped{reasons})")
        missing = [name for name in self.layers.never_called if not self._calling[name]]
        if missing:
            raise CutPointError(f"layer {missing[0]!r} is never called in the forward pass; choose another")
        empty = without_rows(model, wanted, self.cut_points, self._calling)
        names = self.layers.in_records
        calling = {names[name]: self._calling[name] for name in self.cut_points if self._calling[name]}
        facts = (*self.layers.told((*facts, *empty)), *not_called(calling, calling, self.samples))
        unwritten = tuple(self._skipped)
        moments = renamed(self.moments, names)
        return joined(
            self.store, self.shard, moments, self.head, self.layers, unwritten=unwritten, resumed=resumed, facts=facts
        )
