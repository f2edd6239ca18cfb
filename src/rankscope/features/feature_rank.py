"""Feature dimension of every layer, and of the neighbourhood of one input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from rankscope._base.arrays import dense
from rankscope._base.checks import MemoryBudget, budget_of, count_of, module_of, number_of, refuse_unused, seed_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, UsageError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.progress import Progress, reporting, watched
from rankscope._base.provenance import device_name
from rankscope.features.accumulate import layer_features
from rankscope.features.class_features import class_features, class_labels
from rankscope.features.feature_profile import FeatureProfile, LayerFeatures
from rankscope.features.hooks import inference
from rankscope.features.later_layers import LayersOfSamples
from rankscope.features.layer_store import LayerStore, profile_of
from rankscope.features.moments import CentredMoments
from rankscope.features.precision import narrowed, unit_roundoff
from rankscope.features.reduction import Channels, Reduce, check_reduce, reduce_output
from rankscope.loading.texts import Texts
from rankscope.slicing import CutPointsLike, Sample, mode_facts
from rankscope.slicing.batches import Batches, dtype_of_inputs
from rankscope.slicing.calls import Call, can_be_repeated
from rankscope.slicing.meaning import Meaning
from rankscope.slicing.one_sample import naming_the_batch
from rankscope.slicing.reader import Samples, facts_of, meaning_of
from rankscope.slicing.values import is_array
from rankscope.slicing.wrapped import unwrapped

__all__ = ["feature_rank", "local_feature_rank", "measured_features"]

_MEMORY = (
    4e9  # bytes for accumulators, all layers together: what the paper's networks need for pooled features, and more
)


def feature_rank(
    source: Any,
    data: Any = None,
    *,
    cut_points: CutPointsLike = "blocks",
    reduce: Reduce = "flatten",
    channels: Channels = "auto",
    samples: int | None = None,
    batch_size: int = 64,
    memory_budget: MemoryBudget = None,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
    labels: Any = None,
    head: Any = None,
    progress: bool | Progress | None = None,
) -> FeatureProfile:
    """How many dimensions the features of each layer have: PCA dimension and soft ranks (paper §6.1).

    Parameters
    ----------
    source : nn.Module, mapping of name → array or CentredMoments, one array, or a ``Collection``
        What to measure. Arrays are (N, …) with samples first.
    data : Tensor, array, mapping, tuple, Dataset or DataLoader
        Inputs, when ``source`` is a model, read as ``jacobian_rank`` reads them; they may be integers. One pass is
        made, in the dtype of the model. A label beside the input is left out. Samples may have several shapes where
        the rows have one width (``reduce="pool"`` or ``"positions"``).
    cut_points : "blocks", "paper", "all", name, glob, or a list of names and globs
        When ``source`` is a model; as in ``jacobian_rank``: a module that any sample calls several times stands for
        all its calls, each with its number, ``layer#1``. A sample that does not make a call has no part in it.
    reduce, channels
        How a feature map becomes rows: see ``reduce_output``. A ``Collection`` brings its own.
    samples : int, optional
        Number of samples when ``data`` cannot tell: it decides between covariance and Gram matrix, never the result.
    batch_size : int
        Samples in one forward pass; a DataLoader brings its own.
    memory_budget : int or str, optional
        Bytes, or a text such as ``"4GB"``, for all accumulators together; default: 4e9 bytes on every machine,
        since it decides what is sketched. What does not fit is sketched, with bounds, the widest layers first.
    differentiate : str, optional
        The name of the input whose first dimension counts the samples, where several could.
    shared, per_sample : names, optional
        Inputs of a mapping that every sample is called with, and inputs whose rows belong to the samples, where the
        shape leaves it open.
    labels : array, optional
        (N,) class indices, where the source is one array or several: neural collapse and class ranks stand beside the
        dimensions, of one row per sample.
    head : nn.Linear, (weight, bias) or True, optional
        What reads the one array that is the source: NC3 and NC4 too. ``True`` for a ``Collection``: the features that
        go into its head become one more layer, ``head input``, with its own labels.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    DataError
        NaN or complex features (layer and sample named), features that are constant at every layer, fewer than two
        samples, a layer too wide even for a sketch. A constant layer among others has dimension 0 and is named.
    CutPointError
        A cut point that the model does not have or does not call, or whose rows are not samples. Of what "blocks",
        "all" or a glob chooses, such layers are left out.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [3.0, 3.0, 0.0], [5.0, 5.0, 0.0]])
    >>> feature_rank({"layer": x})["layer"].pca_dimension
    1
    """
    check_reduce(reduce, channels)
    batch_size = count_of(batch_size, "batch_size")
    samples = None if samples is None else count_of(samples, "samples")
    budget = _budget(memory_budget)
    if isinstance(source, nn.Module):
        if data is None or not cut_points:
            raise UsageError("a model needs data, and cut_points (blocks, names or globs) to be measured at")
        if labels is not None or head is not None:
            raise UsageError(
                "labels and head belong to features that are there; collect those of the model first: "
                "feature_rank(collect(model, data, …), head=True)"
            )
        source, cut_points, wrapping = unwrapped(source, cut_points)
        meaning = meaning_of(differentiate, shared, per_sample, floating=False)
        # a decoder's head looks for padding in a batch, and texts have none
        batches = Batches(source, data, 1 if isinstance(data, Texts) else batch_size, meaning)
        total = lambda: samples or batches.total  # noqa: E731
        with naming_the_batch(data.shape if is_array(data) else None), reporting(progress, "features") as report:
            return measured_features(
                source,
                watched(batches, len, total, report, "samples"),
                cut_points=cut_points,
                reduce=reduce,
                channels=channels,
                samples=total,
                memory_budget=memory_budget,
                facts=wrapping,
            )
    _check_kept(source, reduce, channels)
    refuse_unused(
        [
            *(["data"] if data is not None else []),
            *(["cut_points"] if cut_points != "blocks" else []),
            *(["samples"] if samples is not None else []),
            *(n for n, v in (("differentiate", differentiate), ("shared", shared), ("per_sample", per_sample)) if v),
        ],
        "where the source is no model",
    )
    beside: list[LayerFeatures] = []
    facts: list[Fact] = []
    if hasattr(source, "moments") and not isinstance(source, Mapping):
        if labels is not None or head not in (None, True):
            raise UsageError("a collection has labels and a head of its own; give head=True to measure by them")
        if head:
            beside = [_head_input(source, budget, facts)]
        reduce, source, head = source.reduce, source.moments, None
    elif head is True:
        raise UsageError("head=True belongs to a Collection; give these features' linear layer or its (weight, bias)")
    elif head is not None and labels is None:
        raise UsageError("a head is compared with class means; give labels too")
    if not isinstance(source, Mapping):
        source = {"features": source}
    if not source and not beside:
        raise UsageError("no layers are given; name one array or CentredMoments or more")
    if head is not None and len(source) > 1:
        raise UsageError(f"a head reads one layer, and {len(source)} are given; give that layer's array alone")
    known = None if labels is None else class_labels(labels)
    layers: list[LayerFeatures] = []
    with reporting(progress, "features") as report:
        for name, values in watched(source.items(), lambda _: 1, lambda: len(source), report, "layers"):
            if isinstance(values, CentredMoments):
                refuse_unused(["labels"] if known is not None else [], "for moments, which keep no sample apart")
                layers.append(layer_features(name, values, reduce))
                continue
            rows = dense(values, name)
            if rows.ndim < 2 or not rows.numel():
                raise DataError(
                    f"{name} has shape {tuple(rows.shape)}; give (samples, ...) with at least one value per sample"
                )
            store = LayerStore(reduce, channels, len(rows), budget)
            for part in rows.split(max(batch_size, 1024)):
                store.add({name: part}, len(part))
            layers.append(store.layer(name))
            if known is not None:
                layers[-1] = _with_classes(layers[-1], rows, known, head, reduce, channels)
                facts += _rounded_classes(name, rows.dtype)
            facts += store.facts
    return profile_of([*layers, *beside], "feature_rank", facts, {})


def measured_features(
    model: nn.Module,
    calls: Iterable[Call],
    *,
    cut_points: CutPointsLike,
    reduce: Reduce,
    channels: Channels,
    samples: Callable[[], int | None],
    memory_budget: MemoryBudget = None,
    facts: Sequence[Fact] = (),
) -> FeatureProfile:
    """The features that ``calls`` leave at each cut point; ``samples`` is asked once the first call has come."""
    passing = iter(calls)
    first = next(passing, None)
    if first is None:
        raise DataError("the data hold no sample; give at least two")
    sample = first.rows(0, 1, "the first sample")
    store = LayerStore(reduce, channels, samples(), _budget(memory_budget))
    store.facts += (*facts, *mode_facts(model), *facts_of(first, FactKind.COUNTED))
    with inference(model) as device, LayersOfSamples(model, sample, cut_points, device) as layers:
        store.facts += layers.remembers(sample)
        for call in chain([first], passing):
            for outputs, part in layers.passes(call):
                store.add(outputs, len(part), part.x.shape)
        store.facts = [*layers.told(store.facts), *layers.found()]
    return store.profile("feature_rank", {"device": device_name(device)}, layers.in_records)


def local_feature_rank(
    model: nn.Module,
    x: Any,
    *,
    cut_points: CutPointsLike = "blocks",
    noise: float = 1e-3,
    samples: int = 5000,
    reduce: Reduce = "flatten",
    channels: Channels = "auto",
    batch_size: int = 64,
    seed: int = 0,
    memory_budget: MemoryBudget = None,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
    progress: bool | Progress | None = None,
) -> FeatureProfile:
    """Feature dimensions around one input: over x + noise·Gaussian, as the published code measures them.

    Its PCA has min(samples, width) eigenvalues, so the dimension counts those from eps32·min(samples, width)·λ_1 on,
    where ``feature_rank`` has the width (paper §6.1). The forward pass is in the dtype of the model, whose rounding is
    part of that measurement (the published code's is float32): ``pca_bounds`` take the features as they come.

    Parameters
    ----------
    model : nn.Module
        Measured in evaluation mode and left as it came.
    x : Tensor, array or mapping
        One input, with a batch axis of length 1. The noise of a mapping is that of one floating-point input; token ids
        of a Hugging Face model become embeddings first. An input of one number has shape (1,), and its name is in
        ``per_sample``.
    cut_points : "blocks", "paper", "all", name, glob, or a list of names and globs
        As in ``jacobian_rank``.
    noise : float
        Standard deviation, in the units of ``x``; 1e-3 as in the published code.
    samples : int
        Noisy copies; 5,000 as in the published code. They span at most ``samples`` − 1 dimensions.
    reduce, channels
        How a feature map becomes rows: see ``reduce_output``.
    batch_size : int
        Copies a forward pass; the noise of a copy does not depend on it.
    seed : int
        Of the noise.
    memory_budget : int or str, optional
        What the accumulators may take together, as in ``feature_rank``.
    differentiate : str, optional
        The name of the input that gets the noise, where several could.
    shared, per_sample : names, optional
        As in ``feature_rank``.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    DataError
        ``x`` is not one input, or features are NaN, infinite or constant.
    UsageError
        Noise or samples out of range.
    CutPointError
        A cut point that the model does not have or does not call.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 4))
    >>> local_feature_rank(net, torch.zeros(1, 6), cut_points=["0", "1"], samples=50)["1"].pca_dimension
    2
    """
    check_reduce(reduce, channels)
    samples, batch_size = count_of(samples, "samples", least=2, most=10**8), count_of(batch_size, "batch_size")
    budget = _budget(memory_budget)
    noise, seed = number_of(noise, "noise", above=0), seed_of(seed)
    if not cut_points:
        raise UsageError("no cut_points are given; name one layer or more")
    model, cut_points, facts = unwrapped(model, cut_points)
    sample, reading = _one_input(model, x, meaning_of(differentiate, shared, per_sample))
    generator = torch.Generator().manual_seed(seed)
    dtype = dtype_of_inputs(model, sample.x)
    # what half precision rounds away is no part of what was published, and noise of this size is lost in it
    coarse = unit_roundoff(dtype) > unit_roundoff(torch.float32)
    store = LayerStore(reduce, channels, samples, budget, rounding=coarse)
    store.facts += (*facts, *mode_facts(model), *reading)
    given = x.shape if is_array(x) else None
    with (
        inference(model) as device,
        naming_the_batch(given),
        reporting(progress, "local features") as report,
        LayersOfSamples(model, sample, cut_points, device) as layers,
    ):
        store.facts += layers.remembers(sample)
        together = batch_size if can_be_repeated(model, sample) else 1
        for start in range(0, samples, together):
            n = min(together, samples - start)
            # one draw per sample: the noise does not depend on the batch size
            step = noise * torch.stack([torch.randn(sample.x.shape[1:], generator=generator) for _ in range(n)])
            for outputs, part in layers.passes(_copies(sample, sample.x.to("cpu", dtype) + step)):
                store.add(outputs, len(part), sample.x.shape)
            report(start + n, samples, "noisy copies")
        store.facts = [*layers.told(store.facts), *layers.found()]
    about = {"device": device_name(device), "noise": noise, "seed": seed}
    found = store.profile("local_feature_rank", about, layers.in_records)
    return replace(found, layers=tuple(replace(one, counted=min(one.samples, one.width)) for one in found.layers))


def _head_input(collection: Any, budget: float, facts: list[Fact]) -> LayerFeatures:
    """What goes into a collection's head, with its classes; what is to be said of it goes to ``facts``."""
    name, labels = "head input", class_labels(collection.labels)
    rows = narrowed(collection.features)  # a collection keeps half precision in float32
    store = LayerStore("flatten", "auto", len(labels), budget)
    store.add({name: rows}, len(labels))
    found = class_features(rows, labels, collection.head, name)
    facts += [*store.facts, *_rounded_classes(name, rows.dtype)]
    return replace(store.layer(name), by_class=found)


def _rounded_classes(name: str, dtype: torch.dtype) -> list[Fact]:
    """Class ranks have no bounds, and a class whose features are close together varies by little but rounding."""
    if unit_roundoff(dtype) <= unit_roundoff(torch.float32):
        return []
    return [Fact(FactKind.ROUNDED_CLASSES, {"name": name, "dtype": dtype_name(dtype)}, caution=True)]


def _with_classes(
    layer: LayerFeatures, outputs: torch.Tensor, labels: torch.Tensor, head: Any, reduce: Reduce, channels: Channels
) -> LayerFeatures:
    if reduce == "positions":
        raise UsageError(
            "labels name samples, and reduce='positions' makes several rows of each; choose pool or flatten"
        )
    rows = reduce_output(outputs, reduce, channels=channels, input_shape=None)
    rows = rows if rows.is_floating_point() else rows.to(torch.float64)
    return replace(layer, by_class=class_features(rows, labels.to(rows.device), head, layer.name))


def _copies(sample: Sample, x: torch.Tensor) -> Call:
    """The call with ``x`` (n, …) in place of the one input, and what belongs to it once for each."""
    if len(x) == 1:
        return Call(x, sample.name, sample.keyword, {}, sample.extra)
    own = {k: v.expand(len(x), *v.shape[1:]) for k, v in sample.extra.items() if isinstance(v, torch.Tensor)}
    return Call(x, sample.name, sample.keyword, own, {k: v for k, v in sample.extra.items() if k not in own})


def _check_kept(source: Any, reduce: Reduce, channels: Channels) -> None:
    """Refuse what is neither model nor features, and another reduction than that of rows that are made already."""
    if source is None or isinstance(source, str | type) or inspect.isroutine(source):
        module_of(source, "source")
    collected = hasattr(source, "moments") and not isinstance(source, Mapping)
    values = source.values() if isinstance(source, Mapping) else [source]
    if collected or all(isinstance(one, CentredMoments) for one in values):
        late = ["channels"] if channels != "auto" else []
        if collected and reduce not in ("flatten", source.reduce):
            late.insert(0, "reduce")
        refuse_unused(late, "for moments, whose rows are made already")


def _one_input(model: nn.Module, x: Any, meaning: Meaning) -> tuple[Sample, tuple[Fact, ...]]:
    if is_array(x) and (len(x.shape) < 1 or len(x) != 1):
        raise DataError(
            f"x must be one input with a batch axis of length 1; this has shape {tuple(x.shape)}, so give x[None] if "
            "it is one"
        )
    samples = Samples(model, x, None, meaning)
    found = list(islice(samples, 2))
    if len(found) > 1:
        raise DataError(f"x must be one input; this {type(x).__name__} holds more")
    return found[0], samples.facts(FactKind.NOISED)


def _budget(memory_budget: MemoryBudget) -> float:
    return _MEMORY if memory_budget is None else budget_of(memory_budget, torch.device("cpu"))
