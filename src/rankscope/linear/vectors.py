"""What a caller multiplies a Jacobian with: one vector or several, of the Jacobian's own dtype and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankscope._base.errors import UsageError, parameter

__all__ = ["vectors"]


def vectors(
    values: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, bool]:
    """Tangents or cotangents of ``shape`` as a batch without gradient, and whether it was one alone.

    Raises
    ------
    UsageError
        For another shape, dtype or device.

    >>> vectors(torch.ones(3), "v", (3,), torch.float32, torch.device("cpu"))
    (tensor([[1., 1., 1.]]), True)
    """
    if not isinstance(values, Tensor):
        raise UsageError(f"{parameter(name)} is of type {type(values).__name__}; give a tensor")
    one = tuple(values.shape) == shape
    if not one and tuple(values.shape[1:]) != shape:
        many = ", ".join(["k", *map(str, shape)])
        raise UsageError(
            f"{parameter(name)} has shape {tuple(values.shape)}; give {shape}, or ({many}) for k of them at once"
        )
    if values.dtype != dtype:
        wide = dtype if values.dtype not in (torch.float32, torch.float64) else values.dtype
        other = "" if wide == dtype else f", or take the Jacobian in_dtype({wide})"
        raise UsageError(
            f"{parameter(name)} is {values.dtype} and this Jacobian {dtype}; convert it with {name}.to({dtype}){other}"
        )
    if values.device != device:
        raise UsageError(
            f"{parameter(name)} is on {values.device} and this Jacobian on {device}; move it with "
            f"{name}.to({str(device)!r})"
        )
    plain = values.detach()
    return (plain[None] if one else plain), one
