"""How a layer's output, one tensor per sample, becomes rows of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from rankscope._base.checks import choice_of
from rankscope._base.errors import DataError
from rankscope.features.precision import unit_roundoff

__all__ = ["Channels", "Reduce", "check_reduce", "coarse_square", "reduce_output"]

Reduce: TypeAlias = Literal["flatten", "pool", "positions"]
Channels: TypeAlias = Literal["auto", "first", "last"]
_REDUCE, _CHANNELS = ("flatten", "pool", "positions"), ("auto", "first", "last")


def check_reduce(reduce: str, channels: str) -> None:
    """Raise ``UsageError`` for a name that is not known."""
    for value, known, what in ((reduce, _REDUCE, "reduce"), (channels, _CHANNELS, "channels")):
        choice_of(value, what, known)


def reduce_output(
    output: torch.Tensor,
    reduce: Reduce = "flatten",
    *,
    channels: Channels = "auto",
    input_shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """(rows, d) from a layer's output (n, …).

    ============= ==================== =====================================================
    reduce        rows × d             for (n, C, H, W)
    ============= ==================== =====================================================
    ``flatten``   n × everything       the whole feature map as one vector, as in the paper
    ``pool``      n × channels         the mean over positions
    ``positions`` n·positions × C      every position is a sample (they are not independent)
    ============= ==================== =====================================================

    ``channels="auto"`` takes the last axis for three dimensions (tokens). For four and more it takes the last where the
    two before it are equal and differ from it (maps of shape n, H, H, C, as Swin's), else the first after the batch.
    Where ``input_shape``, that of the model's input, says that images are not square, it takes the first: the shape
    alone cannot tell there, and ``"last"`` must be said.

    >>> reduce_output(torch.zeros(2, 3, 4, 5), "positions").shape
    torch.Size([40, 3])
    """
    check_reduce(reduce, channels)
    if not output.ndim:
        raise DataError("a layer's output of shape () has no dimension that counts samples")
    if output.ndim == 1:  # one number for each sample, as a regression returns, is one feature
        return output[:, None]
    if output.ndim == 2 or reduce == "flatten":
        return output.flatten(1)
    last = _last_by_shape(output.shape, input_shape) if channels == "auto" else channels == "last"
    moved = output if last else output.movedim(1, -1)
    if reduce == "positions":
        return moved.reshape(-1, moved.shape[-1])
    # half precision has too few digits for a mean over thousands of positions
    return moved.flatten(1, -2).mean(1, dtype=torch.promote_types(moved.dtype, torch.float32))


def coarse_square(
    output: torch.Tensor, reduce: Reduce, *, channels: Channels = "auto", input_shape: Sequence[int] | None = None
) -> torch.Tensor | None:
    """‖X‖²_F that the rounding of a half-precision map is relative to, where that is not the norm of its rows.

    A mean over positions is as far off as its terms are, which may be larger than their mean. ``None`` elsewhere.
    """
    if unit_roundoff(output.dtype) <= unit_roundoff(torch.float32) or reduce != "pool" or output.ndim <= 2:
        return None
    return reduce_output(output.abs(), reduce, channels=channels, input_shape=input_shape).double().square().sum()


def _last_by_shape(shape: Sequence[int], input_shape: Sequence[int] | None) -> bool:
    if len(shape) == 3:
        return True
    square = input_shape is None or len(input_shape) < 4 or input_shape[-1] == input_shape[-2]
    return square and shape[-3] == shape[-2] != shape[-1]
