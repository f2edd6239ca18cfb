"""Collect once: stream a data set through a model and keep what every analysis of feature space needs."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import CutPointError, DataError, ModelError, OutputError, UsageError
from rankscope._base.progress import Progress
from rankscope.features.cut_names import chosen_calls, cut_names, is_plain
from rankscope.features.fingerprint import data_fingerprint, model_fingerprint, setting_fingerprint
from rankscope.features.heads import find_head, linear_parts
from rankscope.features.hooks import inference, record_outputs
from rankscope.features.moments import CentredMoments
from rankscope.features.pipeline import InFlight, launch, on_device
from rankscope.features.reduction import Channels, Reduce, check_reduce, reduce_output
from rankscope.features.shards import ShardStore
from rankscope.features.sources import Batch, Skipped, as_dataset, batches, first_input
from rankscope.slicing import CutPointsLike

__all__ = ["Collection", "collect"]

_HELD = 1 << 24  # entries of rows that wait for their product: 64 MB a layer
_MOMENTS_LIMIT = 16_384  # widest layer whose covariance is kept while collecting: 2.1 GB


@dataclass(frozen=True, eq=False)
class Collection:
    """What one pass over the data left behind.

    Attributes
    ----------
    features : torch.Tensor
        (N, d) float32: what went into the head.
    logits : torch.Tensor
        (N, c) float32.
    labels, indices : torch.Tensor
        (N,) int64; ``indices`` say which samples of the data set the rows are.
    moments : dict of str to CentredMoments
        By cut point; ``feature_rank(collection)`` reads them.
    head : tuple of tensors
        (weight, bias), ready for ``classification_dimension``.
    skipped : tuple of Skipped
        Samples that could not be read, with file and reason.
    folder : Path
        Where the shards lie.
    resumed : int
        Samples that were taken over from an earlier run.
    """

    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    moments: dict[str, CentredMoments]
    head: tuple[torch.Tensor, torch.Tensor]
    skipped: tuple[Skipped, ...]
    folder: Path
    resumed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def load(cls, folder: str | Path) -> Collection:
        """What ``collect`` left in a folder, without model or data.

        Raises
        ------
        OutputError
            No collection there, one that was never finished, or damaged files.
        """
        path = Path(folder)
        store = ShardStore(path, ShardStore.read_manifest(path))
        setting = json.loads(store.fingerprint["setting"])
        run = _Run(store, store.whole(), setting["cut_points"], setting["reduce"], setting["channels"])
        if not run.shard or run.after < run.total:
            raise OutputError(
                f"the collection in {path} is not finished ({run.after:,} of {run.total:,} samples); collect again "
                "with the same arguments to go on"
            )
        return run.result(0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the tensors."""
        return {
            "schema_version": 1,
            "kind": "collection",
            "folder": str(self.folder),
            "samples": len(self),
            "width": self.features.shape[1],
            "classes": self.logits.shape[1],
            "cut_points": list(self.moments),
            "resumed": self.resumed,
            "skipped": [vars(one) for one in self.skipped],
        }

    def __str__(self) -> str:
        lines = [
            f"{len(self):,} samples, features of width {self.features.shape[1]:,}, {self.logits.shape[1]:,} classes "
            f"in {self.folder}" + (f" ({self.resumed:,} from an earlier run)" if self.resumed else "")
        ]
        lines += [f"moments of {name} ({m.width:,} wide)" for name, m in self.moments.items()]
        if self.skipped:
            lines.append(f"{len(self.skipped)} unreadable samples skipped:")
            lines += [f"  {one.name}: {one.reason}" for one in self.skipped[:20]]
            lines += [f"  … and {len(self.skipped) - 20} more"] if len(self.skipped) > 20 else []
        return "\n".join(lines)


def collect(
    model: nn.Module,
    data: Any,
    *,
    cut_points: CutPointsLike | None = None,
    out: str | Path,
    head: str | None = None,
    reduce: Reduce = "pool",
    channels: Channels = "auto",
    shard_size: int = 10_000,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Collection:
    """Stream ``data`` through ``model`` once; keep final features, logits, labels, and moments of the cut points.

    Run again with the same arguments, it goes on after the last whole shard; a finished collection is read back without
    a forward pass. The model is measured in evaluation mode and left as it came.

    Parameters
    ----------
    model : nn.Module
        A classifier whose final linear layer can be found (or is named by ``head``).
    data : Dataset, DataLoader (sequential), or pair of arrays (inputs, labels)
        Items are (input, label) pairs, or dictionaries with ``pixel_values`` and ``label``.
    cut_points : "blocks", "paper", name, glob, or a list of names and globs, optional
        Where moments are kept (8·d² bytes each, never the activations). Default: the blocks of the network (as in
        ``jacobian_rank``) that are narrow enough for a covariance, if it has any; an empty list keeps none.
    out : path
        Folder for the shards.
    head : str, optional
        Dotted name of the final linear layer; found by itself otherwise.
    reduce, channels
        How feature maps become rows of moments: see ``reduce_output``.
    shard_size : int
        Samples a shard, and so at most what an interruption costs; whole batches are kept together.
    batch_size, num_workers : int
        For the loader; a DataLoader brings its own.
    progress : callable, optional
        Called with (samples done, samples in all, text) after every batch.

    Raises
    ------
    OutputError
        The folder holds shards of something else, or cannot be written (a full disk costs the open shard alone).
    DataError
        NaN or infinite features (layer and sample named), data without readable samples or labels.
    ModelError
        No final linear layer, or one whose output is not the model's output.
    CutPointError
        A cut point that the model does not have, does not call, or that is too wide for a covariance.

    Examples
    --------
    >>> import tempfile
    >>> inputs, labels = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = collect(nn.Sequential(nn.Linear(3, 2)), (inputs, labels), out=folder)
    >>> len(found), found.features.shape
    (8, torch.Size([8, 3]))
    """
    check_reduce(reduce, channels)
    if shard_size < 1 or batch_size < 1:
        raise UsageError(f"shard_size is {shard_size} and batch_size {batch_size}; both are counts of samples")
    dataset, options = as_dataset(data)
    name, layer = find_head(model) if head is None else (head, dict(model.named_modules()).get(head))
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no layer {head!r} to be the head")
    cut_points = _cut_points(model, dataset, options, cut_points, reduce, channels)
    fingerprint = {
        "model": model_fingerprint(model),
        "data set": data_fingerprint(dataset),
        "setting": setting_fingerprint(cut_points=cut_points, reduce=reduce, channels=channels, head=name),
    }
    store = ShardStore(Path(out), fingerprint)
    whole = store.open()
    run = _Run(store, whole, cut_points, reduce, channels)
    run.total = len(dataset)
    resumed = run.samples

    def reduced(output: torch.Tensor) -> torch.Tensor:
        return reduce_output(output, reduce, channels=channels)

    try:
        with inference(model) as device, record_outputs(model, cut_points, inputs_of=name, reduced=reduced) as outputs:
            run.beside = _works_beside(device)
            loader = batches(dataset, run.after, batch_size=batch_size, num_workers=num_workers, options=options)
            for batch in on_device(loader, device) if run.after < len(dataset) else ():
                if len(batch.indices):
                    outputs.clear()
                    made = model(batch.inputs)
                    run.launch(batch, outputs, _logits(made), layer, name)
                # a batch is looked at when the next one is on its way; on a CPU there is nothing to wait for
                run.settle(waiting=1 if run.beside else 0)
                run.skip(batch)
                if progress is not None:
                    progress(batch.after, run.total, "collecting")
                if run.pending >= shard_size:
                    run.flush(layer, device)
            run.flush(layer, device)
    finally:
        run.close()
    return run.result(resumed)


def _cut_points(
    model: nn.Module,
    dataset: Any,
    options: dict[str, Any],
    wanted: CutPointsLike | None,
    reduce: Reduce,
    channels: Channels,
) -> list[str]:
    """Dotted names; without any wanted, the blocks of the network that are narrow enough for a covariance."""
    if wanted is not None and not isinstance(wanted, str) and not wanted:
        return []
    if wanted is not None and is_plain(model, wanted):
        return [wanted] if isinstance(wanted, str) else list(wanted)
    x = first_input(dataset, options)
    if x is None:  # told below, with the reasons, as data without a readable sample
        return []
    if wanted is not None:
        return cut_names(model, x, wanted)
    try:
        calls = chosen_calls(model, x, "blocks")
    # no block, tokens, or a model that changes its modules as it runs: final features are there all the same
    except (CutPointError, ModelError, KeyError):
        return []
    widths = {
        call.key[0]: reduce_output(torch.empty(call.shape, device="meta"), reduce, channels=channels).shape[1]
        for call in calls
        if len(call.shape) > 1
    }
    return [name for name, width in widths.items() if width <= _MOMENTS_LIMIT]


def _works_beside(device: torch.device) -> bool:
    """Whether the device computes while the processor goes on."""
    return device.type == "cuda"


def _logits(made: Any) -> torch.Tensor:
    made = getattr(made, "logits", made)
    if not isinstance(made, torch.Tensor) or made.ndim != 2:
        raise ModelError(f"the model returns {type(made).__name__}; a collection needs logits (samples × classes)")
    return made


class _Run:
    """The shard being filled, and the moments of all samples so far."""

    def __init__(
        self, store: ShardStore, whole: int, cut_points: list[str], reduce: Reduce, channels: Channels
    ) -> None:
        self.store, self.shard, self.cut_points = store, whole, cut_points
        self.total = 0
        self.head: tuple[torch.Tensor, torch.Tensor] | None = None
        self.reduce, self.channels = reduce, channels
        self.samples = self.after = self.pending = 0
        self.moments: dict[str, CentredMoments] = {}
        self._open: dict[str, list[torch.Tensor]] = {}
        self._flights: list[InFlight] = []
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._head_checked = False
        self.beside = False
        # beside a GPU, writing (and flushing to disk) goes on while the next shard is filled
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._skipped: list[Skipped] = []
        if whole:
            for index in range(whole):
                tensors, notes = store.read(index)
                self.samples += len(tensors["labels"])
                self.after, self.total = int(notes["after"]), int(notes["total"])
            self._restore(store.read_moments(whole - 1))

    def _restore(self, states: dict[str, torch.Tensor]) -> None:
        self.head = states["<head>/weight"], states["<head>/bias"]
        for name in self.cut_points:
            moments = CentredMoments(len(states[f"{name}/mean"]), name=name)
            moments.merge_state({key: states[f"{name}/{key}"] for key in ("count", "mean", "scatter")})
            self.moments[name] = moments

    def launch(
        self, batch: Batch, outputs: dict[str, torch.Tensor], logits: torch.Tensor, layer: nn.Module, head: str
    ) -> None:
        """Take over what a forward pass left, without waiting for it."""
        missing = [name for name in (*self.cut_points, "<input>") if name not in outputs]
        if missing:
            what = f"the head {head!r}" if missing[0] == "<input>" else f"layer {missing[0]!r}"
            raise CutPointError(f"{what} is never called in the forward pass; choose another")
        features = outputs["<input>"].flatten(1).to(torch.float32)
        labels = batch.labels
        if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(features):
            raise DataError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give one class index a sample")
        rows = {name: outputs[name] for name in self.cut_points}
        for name, values in rows.items():
            if values.shape[1] > _MOMENTS_LIMIT:
                width = values.shape[1]
                raise CutPointError(
                    f"{name}: {width:,} dimensions; a covariance would take {8 * width**2 / 1e9:,.1f} GB: use "
                    'reduce="pool" or "positions", or feature_rank(model, …), which sketches wide layers'
                )
        self._flights.append(launch(batch, rows, features, logits.float()))
        if not self._head_checked:
            self._flights[-1].check()  # a NaN is told as such, not as a head that does not fit
            self._check_head(features, logits.float(), layer, head)
            self._head_checked = True
        self.pending += len(labels)

    def settle(self, *, waiting: int = 0) -> None:
        """Check and store what has been launched, all but the last ``waiting`` batches."""
        while len(self._flights) > waiting:
            flight = self._flights.pop(0)
            flight.check()
            for name, rows in flight.rows.items():
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
            self.moments[name] = CentredMoments(rows.shape[1], name=name)
        if self.moments[name].mean.device != rows.device:
            self.moments[name].to(rows.device)
        self.moments[name].add_checked(rows)

    @staticmethod
    def _check_head(features: torch.Tensor, logits: torch.Tensor, layer: nn.Module, head: str) -> None:
        parts = linear_parts(layer, features.shape[1])
        if parts is None:
            raise ModelError(f"the head {head!r} is a {type(layer).__name__}, not a linear layer; name another one")
        made = torch.addmm(parts[1], features, parts[0].T)
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
        states = {
            f"{n}/{key}": getattr(m, key) for n, m in self.moments.items() for key in ("count", "mean", "scatter")
        }
        parts = linear_parts(layer, tensors["features"].shape[1])
        assert parts is not None  # checked with the first batch
        self.head = parts[0].cpu(), parts[1].cpu()
        states |= {"<head>/weight": self.head[0], "<head>/bias": self.head[1]}
        notes = {"after": self.after, "total": self.total, "skipped": [vars(one) for one in self._skipped]}
        if self.beside:
            # moments go on changing in place: the thread writes copies, and waits for these
            states = {key: state.to("cpu", non_blocking=True, copy=True) for key, state in states.items()}
            copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
            self._writing = self._writer.submit(self._append, copied, self.shard, tensors, states, notes)
        else:
            self.store.append(self.shard, tensors, states, notes)
        self.shard += 1
        self.pending = 0
        self._open, self._skipped = {}, []

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

    def result(self, resumed: int) -> Collection:
        self.wait_for_writing()
        if not self.shard or self.head is None:
            reasons = f"; the first: {self._skipped[0].name}: {self._skipped[0].reason}" if self._skipped else ""
            raise DataError(f"the data hold no readable sample ({len(self._skipped)} skipped{reasons})")
        read = [self.store.read(index) for index in range(self.shard)]
        joined = {key: torch.cat([tensors[key] for tensors, _ in read]) for key in read[0][0]}
        skipped = [Skipped(**one) for _, notes in read for one in notes["skipped"]] + self._skipped
        return Collection(
            **joined,
            moments=self.moments,
            head=self.head,
            skipped=tuple(skipped),
            folder=self.store.folder,
            resumed=resumed,
        )
