"""float64 arithmetic with a shorter significand, such as the 24 bits of float32, and the whole range of float64.

A float64 sweep's error is estimated from that of a narrower precision. float32 itself serves where it can carry the
numbers; weights of 1e-170 or 1e160 are zero or infinite in it, and a network that enlarges every error has no digit
left with 24 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["Rounded"]

_BITS = 53  # of float64's significand


def _round(value: Any, lost: int) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.float64 or not value.numel() or value._is_zerotensor():
        return value  # a zero tensor, as forward mode makes it, has no memory
    bits = value.contiguous().view(torch.int64) + (1 << (lost - 1))
    return (bits & -(1 << lost)).view(torch.float64)


class Rounded(TorchDispatchMode):
    """Inside, every operator's float64 result is rounded to ``bits``, to nearest.

    >>> with Rounded():
    ...     found = torch.tensor([1e-170], dtype=torch.float64) * (1 + 2.0**-30)
    >>> bool(found == 1e-170), bool((found - 1e-170).abs() < 1e-177)
    (False, True)
    """

    def __init__(self, bits: int = 24) -> None:
        super().__init__()
        self._lost = _BITS - bits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # what shares memory with an argument has to stay the tensor that it is
        return (
            out if func.is_view or func._schema.is_mutable else tree_map(lambda value: _round(value, self._lost), out)
        )
