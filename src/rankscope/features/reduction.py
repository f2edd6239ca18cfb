"""How a layer's output, one tensor a sample, becomes rows of features."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from rankscope._base.errors import DataError, UsageError, nearest

__all__ = ["Channels", "Reduce", "check_reduce", "reduce_output"]

Reduce: TypeAlias = Literal["flatten", "pool", "positions"]
Channels: TypeAlias = Literal["auto", "first", "last"]
_REDUCE, _CHANNELS = ("flatten", "pool", "positions"), ("auto", "first", "last")


def check_reduce(reduce: str, channels: str) -> None:
    """Raise ``UsageError`` for a name that is not known."""
    for value, known, what in ((reduce, _REDUCE, "reduce"), (channels, _CHANNELS, "channels")):
        if value not in known:
            raise UsageError(f"unknown {what} {value!r}; {nearest(str(value), known)}")


def reduce_output(output: torch.Tensor, reduce: Reduce = "flatten", *, channels: Channels = "auto") -> torch.Tensor:
    """(rows, d) from a layer's output (n, …).

    ============= ==================== =====================================================
    reduce        rows × d             for (n, C, H, W)
    ============= ==================== =====================================================
    ``flatten``   n × everything       the whole feature map as one vector, as in the paper
    ``pool``      n × channels         the mean over positions
    ``positions`` n·positions × C      every position is a sample (they are not independent)
    ============= ==================== =====================================================

    ``channels="auto"`` takes the first axis after the batch for four and more dimensions (images) and the last for
    three (tokens); say ``"last"`` for channels-last maps such as Swin's.

    >>> reduce_output(torch.zeros(2, 3, 4, 5), "positions").shape
    torch.Size([40, 3])
    """
    check_reduce(reduce, channels)
    if output.ndim < 2:
        raise DataError(f"a layer's output of shape {tuple(output.shape)} has no features beside the batch")
    if output.ndim == 2 or reduce == "flatten":
        return output.flatten(1)
    last = output.ndim == 3 if channels == "auto" else channels == "last"
    moved = output if last else output.movedim(1, -1)
    if reduce == "positions":
        return moved.reshape(-1, moved.shape[-1])
    # half precision has too few digits for a mean over thousands of positions
    return moved.flatten(1, -2).mean(1, dtype=torch.promote_types(moved.dtype, torch.float32))
