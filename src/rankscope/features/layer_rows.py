"""Rows of every layer for the same samples: of a model and its data, or of arrays that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.arrays import dense
from rankscope._base.errors import DataError, UsageError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.progress import Progress, Reporter, reporting, watched
from rankscope.features._inputs import first_bad_row
from rankscope.features.data_digests import DataDigests
from rankscope.features.hooks import inference
from rankscope.features.later_layers import LayersOfSamples
from rankscope.features.precision import check_real, kept_whole
from rankscope.features.reduction import Channels, Reduce, reduce_output
from rankscope.features.sample_axis import check_rows
from rankscope.loading.texts import Texts
from rankscope.slicing import CutPointsLike, mode_facts
from rankscope.slicing.batches import Batches
from rankscope.slicing.reader import facts_of, meaning_of
from rankscope.slicing.wrapped import unwrapped

__all__ = ["layer_rows"]


def layer_rows(
    source: Any,
    data: Any,
    *,
    cut_points: CutPointsLike,
    reduce: Reduce,
    channels: Channels,
    batch_size: int,
    digests: DataDigests | None = None,
    progress: bool | Progress | None = False,
) -> tuple[dict[str, Tensor], tuple[Fact, ...]]:
    """(N, d) rows by layer, on the CPU, in the dtype that they have (half precision in float32), and facts.

    ``source`` is a model, with ``data`` as ``feature_rank`` takes them, or an array or a mapping of names to arrays
    (N, …), which ``data`` has no part in. ``digests`` takes in what the model was called with.

    Raises
    ------
    DataError
        Rows that are no real finite numbers; arrays with other numbers of samples.
    UsageError
        A model without data, or no array at all.
    """
    if isinstance(source, nn.Module):
        if data is None:
            raise UsageError("a model needs data; give the inputs that its layers are compared on")
        with reporting(progress, "features") as report:
            rows, facts = _of_model(source, data, cut_points, reduce, channels, batch_size, digests, report)
    else:
        named = source if isinstance(source, Mapping) else {"features": source}
        if not named:
            raise UsageError("no layers are given; name one array or more")
        rows, facts = {str(name): _of_array(str(name), one, reduce, channels) for name, one in named.items()}, ()
    for name, part in rows.items():
        check_real(part, name)
        bad = first_bad_row(part)
        if bad is not None:
            raise DataError(
                f"{name}: sample {bad} holds a NaN or infinite value; remove it, or fix the computation behind it"
            )
    counts = {name: len(part) for name, part in rows.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
        raise DataError(f"the layers have different numbers of samples ({shown}); give the same samples to each")
    return rows, facts


def _of_array(name: str, value: Any, reduce: Reduce, channels: Channels) -> Tensor:
    array = dense(value, name)
    if array.ndim < 2 or not array.numel():
        raise DataError(f"{name} has shape {tuple(array.shape)}; give (samples, …) with at least one value per sample")
    check_real(array, name)
    array = array.detach() if array.is_floating_point() else array.to(torch.float64)
    return kept_whole(reduce_output(array, reduce, channels=channels, input_shape=None)).cpu()


def _of_model(
    source: nn.Module,
    data: Any,
    cut_points: CutPointsLike,
    reduce: Reduce,
    channels: Channels,
    batch_size: int,
    digests: DataDigests | None,
    report: Reporter,
) -> tuple[dict[str, Tensor], tuple[Fact, ...]]:
    model, cut_points, wrapping = unwrapped(source, cut_points)
    meaning = meaning_of(None, (), (), floating=False)
    batches = Batches(model, data, 1 if isinstance(data, Texts) else batch_size, meaning)
    passing = iter(watched(batches, len, lambda: batches.total, report, "samples"))
    first = next(passing, None)
    if first is None:
        raise DataError("the data hold no sample; give at least four")
    sample = first.rows(0, 1, "the first sample")
    kept: dict[str, list[Tensor]] = {}
    facts = [*wrapping, *mode_facts(model), *facts_of(first, FactKind.COUNTED)]
    with inference(model) as device, LayersOfSamples(model, sample, cut_points, device) as layers:
        facts += layers.remembers(sample)
        for call in chain([first], passing):
            if digests is not None:
                digests.take_in(call)
            for outputs, part in layers.passes(call):
                for name, output in outputs.items():
                    check_rows(name, output, len(part))
                    check_real(output, name)
                    output = output if output.is_floating_point() else output.to(torch.float64)
                    rows = reduce_output(output, reduce, channels=channels, input_shape=part.x.shape)
                    kept.setdefault(name, []).append(kept_whole(rows).cpu())
        # a layer that some samples alone call has no row for the others
        facts = layers.told(facts) + [
            replace(fact, values={**fact.values, "left_out": True}) if fact.kind is FactKind.NOT_CALLED else fact
            for fact in layers.found()
        ]
        names = {name: called for name, called in layers.in_records.items() if layers.calling[name] == layers.samples}
    if not names:
        raise DataError("no chosen layer is called by every sample; choose other cut points")
    return {called: torch.cat(kept[name]) for name, called in names.items()}, tuple(facts)
