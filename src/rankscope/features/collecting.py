"""Collect once: stream a data set through a model and keep what every analysis of feature space needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import TensorDataset

from rankscope._base.checks import count_of, path_of
from rankscope._base.errors import ModelError, OutputError, nearest
from rankscope._base.facts import Fact, FactKind
from rankscope._base.files import FolderLock
from rankscope._base.identity import Identity, identity_of
from rankscope._base.identity_process import process_state
from rankscope._base.processes import Processes, several, team, together
from rankscope._base.progress import Progress, progress_for
from rankscope._base.turns import in_turn
from rankscope.features.collected_layers import collected_layers
from rankscope.features.collection import Collection
from rankscope.features.collection_run import CollectionRun
from rankscope.features.fingerprint import data_identity, setting_fingerprint
from rankscope.features.heads import find_head
from rankscope.features.passes import Passes
from rankscope.features.path_layers import PathLayers
from rankscope.features.pipeline import on_device
from rankscope.features.reduction import Channels, Reduce, check_reduce
from rankscope.features.resuming import Resumed, begin
from rankscope.features.shards import ShardStore
from rankscope.features.sharing_out import SharedRun, same_collection
from rankscope.features.sources import Batch, as_dataset, batches
from rankscope.features.whole_call import WholeCall
from rankscope.slicing import CutPointsLike, mode_facts
from rankscope.slicing.calls import Call
from rankscope.slicing.capture import OUTPUT
from rankscope.slicing.meaning import Meaning
from rankscope.slicing.one_sample import naming_the_batch
from rankscope.slicing.reader import facts_of, meaning_of
from rankscope.slicing.wrapped import unwrapped

__all__ = ["collect"]


@in_turn
@together
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
    progress: bool | Progress | None = None,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
    processes: Processes = "all",
) -> Collection:
    """Stream ``data`` through ``model`` once; keep final features, logits, labels, and moments of the cut points.

    The same call continues after the last complete shard, and reads back a finished collection. It computes the first
    batch again. If that differs from what was kept, or a shard is damaged, everything is measured again, and ``facts``
    of the result report this. No other run can use the folder meanwhile. The model is measured in evaluation mode and
    returned to its own mode.

    Parameters
    ----------
    model : nn.Module
        A classifier whose final linear layer can be found (or is named by ``head``).
    data : Dataset, DataLoader (sequential), mapping, texts, or pair (inputs, labels)
        Items are (input, label) pairs, or dictionaries with the names of ``forward`` and ``label``, as those of a
        Hugging Face data set whose ``with_transform`` prepares the images; what else they hold is left out. Of a
        ``DataLoader`` with a sampler the samples that it names are collected, in its order. Inputs of a pair are an
        array, or a mapping of names as in ``jacobian_rank``; a mapping alone holds its labels as ``label``. Where there
        are no labels (``None`` in a pair; what ``loading.read_texts`` gives) the result has -1 in their place. Samples
        may have several shapes; those of one shape that follow each other share a pass, and a text has its own.
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
        Samples per shard, which is the most that an interruption costs; batches are not split.
    batch_size, num_workers : int
        For the loader; a DataLoader brings its own.
    progress : bool or callable, optional
        As in ``jacobian_rank``: done and total count samples.
    differentiate : str, optional
        The name of the input whose first dimension counts the samples, where several could.
    shared, per_sample : names, optional
        Inputs of a mapping that every sample is called with, and inputs whose rows belong to the samples, where the
        shape leaves it open.
    processes : "all" or "this"
        Inside an initialised process group of ``torch.distributed``, ``"all"`` of its processes, which have to make the
        same call, share the samples, a shard at a time, and the first writes. With ``"this"`` the process does all
        itself.

    Raises
    ------
    OutputError
        The folder is in use, holds shards of something else, or cannot be written (a full disk costs the open shard
        alone).
    DataError
        NaN or infinite features (layer and sample named), data without readable samples or labels.
    ModelError
        No final linear layer, or one whose output is not the model's output.
    CutPointError
        A cut point that the model does not have, does not call, or that is too wide for a covariance.
    ProcessError
        Another process of the group failed, ended, or does not make the call; whole shards are kept.

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
    shard_size, batch_size = count_of(shard_size, "shard_size"), count_of(batch_size, "batch_size")
    num_workers = count_of(num_workers, "num_workers", least=0, most=1024)
    folder = path_of(out, "out")
    meaning = meaning_of(differentiate, shared, per_sample, floating=False)
    head = unwrapped(model, head)[1]
    model, cut_points, wrapping = unwrapped(model, cut_points)
    dataset, options = as_dataset(model, data, meaning)
    name, layer = _head(model, head)
    shape = _given_shape(dataset)
    with naming_the_batch(shape):
        paths = collected_layers(model, dataset, options, meaning, cut_points, reduce, channels)
    about = identity_of(model), data_identity(dataset, options.get("collate_fn"))
    company = several()
    for owner, identity in zip(("model", "data set"), about, strict=True):
        if company is not None:
            company.comparable(identity.key, identity.unreadable, owner)
        _refuse_incomparable(folder, owner, identity)
    fingerprint = {
        "model": f"{type(model).__name__} {about[0].key}",
        "data set": f"{type(dataset).__name__} of {len(dataset)} {about[1].key}",
        "setting": setting_fingerprint(
            cut_points=paths.layers.names,
            reduce=reduce,
            channels=channels,
            head=name,
            **_said(meaning),
            **_process(),
            **({} if paths.written_out else {"chosen by": cut_points}),
            **({"stacked": True} if options.get("stacked") else {}),  # switches, which a data set alone leaves alone
            # moments of earlier versions may be those of a module's last call
            **({"calls": "by number"} if paths.layers.names else {}),
        ),
    }
    if company is not None:
        company.agree(**{**fingerprint, "sizes": f"{shard_size}, {batch_size}"})
    with FolderLock(folder) if team().writes else contextlib.nullcontext(), naming_the_batch(shape):
        taken = begin(ShardStore(folder, fingerprint), paths.layers, len(dataset)) if team().writes else None
        found = _collect(
            model,
            dataset,
            options,
            taken,
            meaning=meaning,
            head=(name, layer),
            paths=paths,
            reduced=(reduce, channels),
            shard_size=shard_size,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=progress if team().writes else False,
            facts=wrapping,
        )
        return same_collection(company, found, folder) if company is not None else cast(Collection, found)


def _given_shape(dataset: Any) -> tuple[int, ...] | None:
    """The shape of an input that was given whole; None where items of a data set are samples."""
    if isinstance(dataset, WholeCall):
        return tuple(dataset.call.x.shape)
    return tuple(dataset.tensors[0].shape) if type(dataset) is TensorDataset and dataset.tensors else None


def _collect(
    model: nn.Module,
    dataset: Any,
    options: dict[str, Any],
    taken: Resumed | None,
    *,
    meaning: Meaning,
    head: tuple[str, nn.Module],
    paths: PathLayers,
    reduced: tuple[Reduce, Channels],
    shard_size: int,
    batch_size: int,
    num_workers: int,
    progress: bool | Progress | None,
    facts: Sequence[Fact],
) -> Collection | None:
    """The pass over what is not yet in whole shards; ``taken`` and the result are those of the first process."""
    name, layer = head
    report = progress_for(progress, "collect")
    about = (*facts, *mode_facts(model))  # the mode that the model came in
    if isinstance(dataset, WholeCall):
        about = (*about, *facts_of(dataset.call, FactKind.COUNTED))
    if taken is not None:
        paths.go_on(taken.run.layers)
    passes = Passes(model, name, *reduced, paths)
    company = several()
    resumed, looked = 0, False
    try:
        with passes.recording():

            def read(start: int, stop: int) -> Iterator[Batch]:
                loader = batches(
                    model,
                    dataset,
                    start,
                    batch_size=batch_size,
                    num_workers=num_workers,
                    options=options,
                    meaning=meaning,
                    stop=stop,
                )
                return on_device(loader, passes.device) if start < stop else iter(())

            def look(call: Call) -> None:
                nonlocal about, looked
                if not looked:
                    reading = () if isinstance(dataset, WholeCall) else _reading(call, options, meaning)
                    about, looked = (*about, *reading, *passes.remembers(call)), True

            def fill(run: CollectionRun, start: int, stop: int) -> None:
                run.beside = _works_beside(passes.device)
                for batch in read(start, stop):
                    if batch.call is not None and company is None:
                        look(batch.call)
                    if batch.call is not None:
                        logits = passes.logits(batch.call)
                        run.follow(paths.layers)
                        run.launch(batch, passes.outputs, logits, layer, name, passes.coarse, passes.counts)
                    run.about = (*about, *passes.facts(of=len(dataset)))
                    # a batch is looked at when the next one is on its way; on a CPU there is nothing to wait for
                    run.settle(waiting=1 if run.beside else 0)
                    run.skip(batch)
                    report(batch.after, run.total, "collecting")
                    # one block of several processes is one shard
                    if run.pending >= shard_size and company is None:
                        run.flush(layer, passes.device)

            if taken is not None:
                taken.compare(model, dataset, options, batch_size, passes.inputs_and_logits, meaning)
                resumed, taken.run.about = taken.run.samples, about
                paths.go_on(taken.run.layers)  # as at first, where everything is measured again
            run = None if taken is None else taken.run
            if company is not None and run is not None:
                found = next((batch.call for batch in read(run.after, len(dataset)) if batch.call is not None), None)
                if found is not None:
                    look(found)
                run.about = about
            if company is not None:
                size = options.get("batch_size") or batch_size
                step = -(-shard_size // size) * size  # whole batches, as in one process
                SharedRun(company, run, paths.first, len(dataset), step, (layer, passes.device)).measure(fill)
            elif run is not None:
                fill(run, run.after, len(dataset))
                run.flush(layer, passes.device)
    finally:
        report.close()
        if taken is not None:
            taken.run.close()
    if taken is None:
        return None
    return taken.run.result(resumed, (*taken.run.about, *taken.facts), model, paths.wanted)


def _head(model: nn.Module, head: str | None) -> tuple[str, nn.Module]:
    """Name and module of the final linear layer; one that is the whole model is named as its output."""
    if head is None:
        name, layer = find_head(model)
        return name or OUTPUT, layer
    named = {name: module for name, module in model.named_modules() if name}
    if head in named:
        return head, named[head]
    if head == OUTPUT and not list(model.children()):
        return head, model
    raise ModelError(f"{type(model).__name__} has no layer {head!r} to be the head; {nearest(head, named or [OUTPUT])}")


def _said(meaning: Meaning) -> dict[str, Any]:
    """What the caller said about names; nothing where nothing was, as in the settings of earlier versions."""
    given = {"differentiate": meaning.differentiate, "shared": meaning.shared, "per_sample": meaning.per_sample}
    return {key: value for key, value in given.items() if value}


def _process() -> dict[str, Any]:
    """What the process adds to the answer; nothing where nothing is unusual, likewise."""
    found = process_state()
    return {"process": found} if found else {}


def _reading(call: Call, options: dict[str, Any], meaning: Meaning) -> tuple[Fact, ...]:
    """How a batch was read: what counts the samples, what all share, and what was left out."""
    # of a batch of one sample it does not show what belongs to the samples: all that torch joined does
    joined = "collate_fn" not in options
    each = (
        name
        for name, value in call.shared.items()
        if (joined or isinstance(value, str)) and name not in (*meaning.shared, *call.each, "use_cache")
    )
    return facts_of(replace(call, each=(*call.each, *each)), FactKind.COUNTED)


def _refuse_incomparable(out: Path, owner: str, identity: Identity) -> None:
    """Shards of a model or data set that nothing can be compared with are nobody's."""
    if identity.unreadable and (out / "manifest.json").exists():
        raise OutputError(
            f"the {owner} holds objects that cannot be compared between two runs ({', '.join(identity.unreadable)}), "
            f"so the collection in {str(out)!r} cannot be continued; give another folder, or delete this one"
        )


def _works_beside(device: torch.device) -> bool:
    """Whether the device computes while the processor goes on."""
    return device.type == "cuda"
