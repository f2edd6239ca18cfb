"""What the dtype of features can carry: their unit roundoff, and the sizes whose squares float64 can hold."""

from __future__ import annotations

import torch

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError

__all__ = ["check_real", "check_scale", "kept_whole", "narrowed", "underflow_roundoff", "unit_roundoff"]

# Between these sizes squares, and their products with eps64, are normal float64 numbers
_SMALLEST, _LARGEST = 1e-145, 1e152


def kept_whole(values: torch.Tensor) -> torch.Tensor:
    """Values in a dtype that loses none of their digits and is not narrower than float32: float64 stays.

    Integers become float64, which holds them up to 2⁵³; float32 does up to 2²⁴ alone.

    >>> kept_whole(torch.tensor([2**40 + 1])).item() - 2**40
    1.0
    """
    whole = not values.is_floating_point() and not values.is_complex()
    return values.to(torch.float64 if whole else torch.promote_types(values.dtype, torch.float32))


def narrowed(values: torch.Tensor) -> torch.Tensor:
    """What ``kept_whole`` made of half precision, in half precision again: its rounding is that of the values.

    Also what happens to fit in it, such as small integers, whose bounds are then wider than they need to be.

    >>> narrowed(torch.tensor([0.1]).bfloat16().float()).dtype, narrowed(torch.tensor([0.1])).dtype
    (torch.bfloat16, torch.float32)
    """
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(dtype).to(values.dtype), values):
            return values.to(dtype)
    return values


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding a number to ``dtype``; 0 for integers, which hold what they hold.

    >>> unit_roundoff(torch.bfloat16), unit_roundoff(torch.int64)
    (0.00390625, 0.0)
    """
    return torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 0.0


# The smallest normal number of a dtype, by its unit roundoff: no two dtypes share one
_TINY = {
    unit_roundoff(dtype): torch.finfo(dtype).tiny
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
}


def underflow_roundoff(roundoff: float, scale: float = 1.0) -> float:
    """Largest error of rounding a number below the normal ones, in the dtype of this unit roundoff, over ``scale``.

    >>> underflow_roundoff(unit_roundoff(torch.float16)) == 2.0**-25, underflow_roundoff(0.0)
    (True, 0.0)
    """
    # divided first: half of float64's smallest number is none
    return _TINY.get(roundoff, 0.0) / scale * roundoff


def check_real(rows: torch.Tensor, name: str) -> None:
    """Raise ``DataError`` for complex features: dropping their imaginary part would answer another question."""
    if rows.is_complex():
        raise DataError(
            f"{name}: the features are {dtype_name(rows.dtype)}; give real ones, such as their real and imaginary "
            "parts side by side: torch.view_as_real(x).flatten(1)"
        )


def check_scale(largest: float, name: str) -> None:
    """Raise ``DataError`` where squares of features whose largest magnitude this is would leave float64's range."""
    if largest and not _SMALLEST <= largest <= _LARGEST:
        raise DataError(
            f"{name}: the largest feature is {largest:.3g}, whose square float64 cannot hold; multiply the features by "
            "a power of two, which changes no dimension"
        )
