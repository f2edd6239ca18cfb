"""Which dtype and which scale carry the logits of a projection."""

from __future__ import annotations

import math

import torch

from rankscope.features.principal import PrincipalAxes
from rankscope.spectra.scale import power_of_two, times_two_to

__all__ = ["needs_float64", "scaled"]

# Size of the mean beside the spread above which float32 leaves too few digits to the spread: float64 then
_LEVEL = 64.0
_ORDINARY = 30  # logits between 2**-30 and 2**30 are left as they come


def needs_float64(basis: PrincipalAxes) -> bool:
    """Whether the mean is so large beside the spread that float32 would cut off digits of the spread."""
    spread = float(basis.variances.sum()) ** 0.5
    return float((basis.mean / basis.unit).norm()) > _LEVEL * spread


def scaled(
    inputs: torch.Tensor, products: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, and float64 products with the axes and offset, all in the features' dtype, for logits of ordinary size.

    The sweep takes norms, whose squares a dtype may not hold. Powers of two round nothing and keep the order of logits.
    """
    dtype = inputs.dtype
    size = float(inputs.abs().max()) or 1.0
    unit = power_of_two(size, dtype)
    # as exponents: the size of the logits itself may be no number
    largest = math.frexp(size)[1] + math.frexp(float(products.abs().max()))[1]
    if float(offset.abs().max()):
        largest = max(largest, math.frexp(float(offset.abs().max()))[1])
    down = largest if unit != 1 or abs(largest) > _ORDINARY else 0
    up = math.frexp(unit)[1] - 1
    return (
        inputs if unit == 1 else inputs / unit,
        times_two_to(products, up - down).to(dtype),
        times_two_to(offset, -down).to(dtype),
    )
