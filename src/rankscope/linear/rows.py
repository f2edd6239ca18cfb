"""Row numbers of cut points that stand one below the other, as the places in each that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope._base.errors import UsageError, parameter

__all__ = ["row_numbers", "split_rows"]


def row_numbers(rows: Any, total: int) -> Tensor:
    """Whole numbers from 0 to ``total`` − 1, in any order, as a tensor on the CPU.

    >>> row_numbers([2, 0], 3)
    tensor([2, 0])
    """
    try:
        found = torch.as_tensor(list(rows) if isinstance(rows, range) else rows).cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, 0)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.ndim != 1 or not (whole or not found.numel()):
        raise UsageError(f"{parameter('rows')} is {_shown(rows)}; give a list of row numbers, such as [0, 3]")
    found = found.to(torch.long)
    bad = found[(found < 0) | (found >= total)]
    if len(bad):
        raise UsageError(f"{parameter('rows')} names row {int(bad[0])}; this Jacobian has rows 0 to {total - 1}")
    return found


def split_rows(rows: Tensor, sizes: Sequence[int], device: torch.device) -> tuple[list[Tensor], Tensor]:
    """For each cut point the places that are meant, and where each row stands when they are put together.

    >>> places, order = split_rows(torch.tensor([4, 0, 2]), (3, 2), torch.device("cpu"))
    >>> [p.tolist() for p in places], order.tolist()
    ([[0, 2], [1]], [2, 0, 1])
    """
    ends = torch.tensor(sizes).cumsum(0)
    owner = torch.bucketize(rows, ends, right=True)
    places = [(rows[owner == k] - (int(ends[k]) - size)).to(device) for k, size in enumerate(sizes)]
    return places, owner.argsort(stable=True).argsort().to(device)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
