"""By how much values differ that should be the same: relative to the largest, and NaN is never small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["APART", "worst", "worst_gap", "worst_gaps", "worst_known"]

APART = 1e-5  # of the largest entry: some ten times what rounding does to one image in two batch sizes (measured)


def worst_gap(found: Tensor, expected: Tensor, images: int = 1) -> float:
    """The largest difference of any image, relative to the largest entry of that image; NaN where both are equals NaN.

    >>> worst_gap(torch.tensor([1.0, 2.0, 0.0, 0.5]), torch.tensor([1.0, 2.0, 0.0, 1.0]), images=2)
    0.5
    """
    return float(worst_gaps([found], [expected], images))


def worst_gaps(found: Sequence[Tensor], expected: Sequence[Tensor], images: int = 1) -> Tensor:
    """The worst of several pairs, as a tensor that nothing has to wait for; 0 of none."""
    if any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return torch.full((), torch.inf, dtype=torch.float64, device=expected[0].device)
    pairs = [(a.reshape(images, -1), b.reshape(images, -1)) for a, b in zip(found, expected, strict=True) if b.numel()]
    if not pairs:
        device = expected[0].device if len(expected) else None
        return torch.zeros((), dtype=torch.float64, device=device)
    kinds = {(a.dtype, b.dtype) for a, b in pairs}
    if len(kinds) > 1:
        return torch.stack([worst_gaps([a], [b], images) for a, b in pairs]).max()
    a, b = (torch.cat(side, 1) for side in zip(*pairs, strict=True))
    same = (a == b) | (a.isnan() & b.isnan())  # infinities of one sign too
    far = torch.where(same, torch.zeros_like(a), (a - b).abs())
    sizes = [b.shape[1] for _, b in pairs]
    apart = torch.stack([part.amax(1) for part in far.split(sizes, 1)])
    top = torch.stack([part.amax(1) for part in b.nan_to_num(0.0, 0.0, 0.0).abs().split(sizes, 1)])
    return torch.where(top > 0, apart / top, apart).max().double()  # a NaN stays one


def worst(gaps: Iterable[float]) -> float:
    """The largest, where NaN is larger than any number; 0 of none."""
    return max(gaps, key=lambda g: float("inf") if g != g else g, default=0.0)


def worst_known(gaps: Iterable[float | None]) -> float | None:
    """The largest; ``None`` where one of them is not known, and of none."""
    found = list(gaps)
    known = [gap for gap in found if gap is not None]
    return worst(known) if known and len(known) == len(found) else None
