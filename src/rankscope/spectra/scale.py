"""Scale first, square after: squares of numbers below 1e-154 vanish and those above 1e154 overflow.

Scales are powers of two, so that multiplying by them changes no digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["exponent_near", "power_of_two", "scaled_norm", "scaled_norms", "times_two_to"]

_LIMIT = 1000  # 2^±1000 are normal float64 numbers, so that both a scale and its inverse are
# Numbers are left as they come between 2**-n and 2**n: squares of sums of many of them are normal numbers
_COMFORTABLE = {torch.float64: 300, torch.float32: 40}


def exponent_near(values: Tensor, dim: int | None = None, *, keepdim: bool = False) -> Tensor:
    """The integer e with 2^(e-1) ≤ max|values| < 2^e, within ±1,000; 0 where all is zero or not finite.

    >>> int(exponent_near(torch.tensor([0.0, -3.0])))
    2
    """
    if not values.numel():
        shape = () if dim is None else [1 if d == dim % values.ndim else n for d, n in enumerate(values.shape)]
        return torch.zeros(shape, dtype=torch.int32, device=values.device)
    size = values.detach().abs()
    return _exponent_of(size.amax() if dim is None else size.amax(dim, keepdim=keepdim))


def _exponent_of(top: Tensor) -> Tensor:
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top)).to(torch.float64)
    return torch.frexp(top)[1].clamp(-_LIMIT, _LIMIT)


def times_two_to(values: Tensor, exponent: Tensor | int) -> Tensor:
    """values · 2^exponent in float64, exact where the result is a normal number; |exponent| may reach 2,000.

    >>> float(times_two_to(torch.tensor(1e-200, dtype=torch.float64), 500) > 1e-50)
    1.0
    """
    values = values.to(torch.float64)
    if isinstance(exponent, int):  # numbers of Python go to a GPU with the kernel: nothing waits
        half = exponent // 2
        return values * 2.0**half * 2.0 ** (exponent - half)
    halves = exponent.div(2, rounding_mode="floor")
    return values * _two_to(halves) * _two_to(exponent - halves)


def _two_to(power: Tensor) -> Tensor:
    return torch.full_like(power, 2.0, dtype=torch.float64).pow(power)


def scaled_norm(values: Tensor, dim: int = -1) -> Tensor:
    """Euclidean norm along ``dim`` in float64, whatever the scale of the numbers.

    >>> float(scaled_norm(torch.tensor([3e-200, 4e-200], dtype=torch.float64)) / 5e-200)
    1.0
    """
    return scaled_norms([values.movedim(dim, -1)])[0]


def scaled_norms(parts: Sequence[Tensor]) -> Tensor:
    """The same of several tensors along their last dimension, stacked: the others have one shape in all of them.

    >>> scaled_norms([torch.tensor([3.0, 4.0]), torch.tensor([1e-200])])[0]
    tensor(5., dtype=torch.float64)
    """
    parts = [p.to(torch.float64) for p in parts]
    zero = parts[0].new_zeros(parts[0].shape[:-1])
    exponents = _exponent_of(torch.stack([p.detach().abs().amax(-1) if p.shape[-1] else zero for p in parts]))
    units = _two_to(-exponents)
    lengths = [torch.linalg.vector_norm(p * u.unsqueeze(-1), dim=-1) for p, u in zip(parts, units, strict=True)]
    return times_two_to(torch.stack(lengths), exponents)


def power_of_two(largest: float, dtype: torch.dtype = torch.float64) -> float:
    """What to divide numbers of this magnitude by before squaring in ``dtype``: a power of two, which rounds nothing.

    It is 1 for all but extreme numbers.

    >>> power_of_two(3e5), power_of_two(2.0**400) == 2.0**400, power_of_two(0.0)
    (1.0, True, 1.0)
    """
    if not largest or not math.isfinite(largest):
        return 1.0
    exponent = math.frexp(largest)[1] - 1
    # 2**-1074 has no inverse
    return 1.0 if abs(exponent) <= _COMFORTABLE[dtype] else math.ldexp(1.0, max(exponent, -1022))
