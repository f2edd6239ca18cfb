"""What the dtype of features can carry: their unit roundoff, and the sizes whose squares float64 can hold."""

from __future__ import annotations

import math

import torch

from rankscope._base.errors import DataError

__all__ = ["check_real", "check_scale", "power_of_two", "unit_roundoff"]

# Between these sizes squares, and their products with eps64, are normal float64 numbers
_SMALLEST, _LARGEST = 1e-145, 1e152
_COMFORTABLE = 300  # features are left as they come between 2**-300 and 2**300


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding a number to ``dtype``; 0 for integers, which hold what they hold.

    >>> unit_roundoff(torch.bfloat16), unit_roundoff(torch.int64)
    (0.00390625, 0.0)
    """
    return torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 0.0


def check_real(rows: torch.Tensor, name: str) -> None:
    """Raise ``DataError`` for complex features: dropping their imaginary part would answer another question."""
    if rows.is_complex():
        raise DataError(
            f"{name}: the features are {str(rows.dtype)[6:]}; give real ones, such as their real and imaginary parts "
            "side by side: torch.view_as_real(x).flatten(1)"
        )


def check_scale(largest: float, name: str) -> None:
    """Raise ``DataError`` where squares of features whose largest magnitude this is would leave float64's range."""
    if largest and not _SMALLEST <= largest <= _LARGEST:
        raise DataError(
            f"{name}: the largest feature is {largest:.3g}, whose square float64 cannot hold; multiply the features by "
            "a power of two, which changes no dimension"
        )


def power_of_two(largest: float) -> float:
    """What to divide features of this magnitude by before squaring: a power of two, which rounds nothing; mostly 1.

    >>> power_of_two(3e5), power_of_two(2.0**400), power_of_two(0.0)
    (1.0, 2.582249878086909e+120, 1.0)
    """
    if not largest or not math.isfinite(largest):
        return 1.0
    exponent = math.frexp(largest)[1] - 1
    # 2**-1074 has no inverse
    return 1.0 if abs(exponent) <= _COMFORTABLE else math.ldexp(1.0, max(exponent, -1022))
