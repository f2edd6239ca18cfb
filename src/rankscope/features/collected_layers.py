"""The layers whose moments a collection keeps: those that were asked for, or the blocks that are narrow enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import CutPointError, ModelError
from rankscope.features.collection_run import MOMENTS_LIMIT
from rankscope.features.cut_names import Chosen, chosen_names, is_plain
from rankscope.features.path_layers import PathLayers
from rankscope.features.reduction import Channels, Reduce, reduce_output
from rankscope.features.sources import first_call
from rankscope.slicing import CutPointsLike, ModuleCall, Sample
from rankscope.slicing.meaning import Meaning

__all__ = ["collected_layers"]


def collected_layers(
    model: nn.Module,
    dataset: Any,
    options: dict[str, Any],
    meaning: Meaning,
    wanted: CutPointsLike | None,
    reduce: Reduce,
    channels: Channels,
) -> PathLayers:
    """What the first sample shows of them; ``wanted`` may be ``None``, for narrow blocks."""
    if wanted is not None and not isinstance(wanted, str) and not wanted:
        return PathLayers.named(model, [])
    if wanted is not None and is_plain(model, wanted):
        return PathLayers.named(model, [wanted] if isinstance(wanted, str) else list(wanted))
    call = first_call(model, dataset, options, meaning)
    if call is None:  # told by the pass, with the reasons, as data without a readable sample
        return PathLayers.named(model, [])
    sample = call.rows(0, 1, "the first sample")
    if wanted is not None:
        return PathLayers(model, sample, wanted, lambda one, times: chosen_names(model, one, wanted, times))
    try:
        return PathLayers(model, sample, None, lambda one, times: _narrow_blocks(model, one, times, reduce, channels))
    # no block, tokens, a model that changes its modules as it runs, or no block that has rows to count: nobody asked
    # for one, and final features are there all the same
    except (CutPointError, ModelError, KeyError):
        return PathLayers.named(model, [])


def _narrow_blocks(
    model: nn.Module, sample: Sample, times: Mapping[str, int], reduce: Reduce, channels: Channels
) -> Chosen:
    def fits(call: ModuleCall) -> bool:
        if len(call.shape) < 2:
            return False
        rows = torch.empty(call.shape, device="meta")
        rows = reduce_output(rows, reduce, channels=channels, input_shape=sample.x.shape)
        return rows.shape[1] <= MOMENTS_LIMIT

    return chosen_names(model, sample, "blocks", times, fits=fits)
