"""What the products of a derivative lose below the range of float64, which no wider precision can show.

A derivative is linear, and a power of two scales without rounding: J·(2ᵏ g) is 2ᵏ·J·g to the last bit unless a number
on the way leaves the range. Their difference is what was lost, wherever on the way that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rankscope.spectra import scaled_norms

__all__ = ["lost_below"]

_USUAL, _GREATER, _LESSER = 2.0**512, 2.0**1000, 2.0**128  # for what is zero at the usual factor, and what overflows
_ROUNDING = 2.0**-40  # of the product: kernels may sum in another order from call to call
_LEAST = torch.finfo(torch.float64).tiny


def lost_below(push: Callable[[Tensor], Sequence[Tensor]], tangents: Tensor) -> Tensor:
    """‖(J − J₆₄)·g‖ by cut point and tangent, as far as it comes from numbers below the range; ``push`` is J₆₄'s.

    Where anything was lost it is at least the smallest normal number, which a length below that cannot be told from. A
    product that is zero behind a cut point that lost something may have lost all: it counts as that much.

    >>> factors = torch.tensor([[1e-200], [1e-300]], dtype=torch.float64)
    >>> lost_below(lambda g: [g * factors[0], g * factors[0] * factors[1]], torch.ones(1, 1, dtype=torch.float64)) > 0
    tensor([[False],
            [ True]])
    """
    plain = push(tangents)
    zero = scaled_norms(list(plain)) == 0
    lost, seen = _compared(push, tangents, plain, _USUAL)
    if bool((zero & (lost == 0)).any()):
        lost = torch.maximum(lost, _compared(push, tangents, plain, _GREATER)[0])
    if not bool(seen.all()):
        lost = torch.maximum(lost, _compared(push, tangents, plain, _LESSER)[0])
    behind = (lost > 0).cumsum(0) > 0
    return torch.where(behind & zero, lost.clamp(min=_LEAST), lost)


def _compared(
    push: Callable[[Tensor], Sequence[Tensor]], tangents: Tensor, plain: Sequence[Tensor], factor: float
) -> tuple[Tensor, Tensor]:
    """The same at one factor, and where nothing overflows there; nothing is lost where something does."""
    great = push(tangents * factor)
    gaps = scaled_norms([a * factor - b for a, b in zip(plain, great, strict=True)])
    tops = scaled_norms(list(great))
    seen = torch.isfinite(gaps) & torch.isfinite(tops)
    lost = seen & (gaps > _ROUNDING * tops)
    return torch.where(lost, (gaps / factor).clamp(min=_LEAST), 0.0), seen
