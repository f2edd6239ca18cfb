"""Of which sample each number comes: one code for each, and what becomes of codes where numbers are put together.

A code is the place of a sample in the pass, ``NONE`` for what comes of no sample, or ``MIXED`` for what comes of
several.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["MIXED", "NONE", "codes_of_rows", "merged", "over"]

NONE, MIXED = -1, -2


def codes_of_rows(x: Tensor, rows: int) -> Tensor:
    """The codes of a tensor whose first dimension counts samples, or several rows of each, in order.

    >>> codes_of_rows(torch.zeros(4, 1), 2).T
    tensor([[0, 0, 1, 1]], dtype=torch.int8)
    """
    dtype = torch.int8 if rows < 127 else torch.int32
    own = torch.arange(rows, dtype=dtype, device=x.device).repeat_interleave(len(x) // max(rows, 1))
    return own.reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)


def merged(*codes: Tensor) -> Tensor:
    """Of what is computed from several numbers, by broadcasting.

    >>> merged(torch.tensor([0, 1, -1, -2]), torch.tensor([0, 0, 2, -1]))
    tensor([ 0, -2,  2, -2])
    """
    found = codes[0]
    for other in codes[1:]:
        both = torch.where(found == NONE, other, found)
        apart = (found != other) & (found != NONE) & (other != NONE)
        found = both.masked_fill(apart, MIXED)
    return found


def over(codes: Tensor, dims: Sequence[int], *, keepdim: bool = True) -> Tensor:
    """Of what is computed from all numbers along some dimensions.

    >>> over(torch.tensor([[0, 0, -1], [0, 1, -1], [-1, -1, -1], [2, -2, 2]]), [1], keepdim=False)
    tensor([ 0, -2, -1, -2])
    """
    dims = sorted({d % codes.ndim for d in dims}) if codes.ndim else []
    if not dims:
        return codes
    if not codes.numel():
        shape = [1 if d in dims else size for d, size in enumerate(codes.shape)]
        made = codes.new_full(shape, NONE)
        return made if keepdim else made.squeeze(dims)
    high, low = codes.amax(dims, keepdim=keepdim), codes.amin(dims, keepdim=keepdim)
    if torch.equal(high, low):
        return high
    own = codes.masked_fill(codes == NONE, torch.iinfo(codes.dtype).max).amin(dims, keepdim=keepdim)
    return high.masked_fill((low == MIXED) | ((high >= 0) & (own != high)), MIXED)
