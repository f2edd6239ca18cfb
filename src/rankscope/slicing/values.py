"""Tensors from what people hand over: tensors, arrays, lists of numbers; what is none of them is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankscope._base.arrays import as_tensor
from rankscope._base.errors import DataError

__all__ = ["as_input", "as_number", "as_tensor", "is_array", "is_scalar_label", "numbers_of"]


def is_array(value: Any) -> bool:
    """A tensor, an array, or what converts itself into one (a data frame, a JAX array)."""
    return isinstance(value, Tensor | np.ndarray) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def as_input(tensor: Tensor, name: str, *, floating: bool = True) -> Tensor:
    """The tensor that counts samples, refused where it is complex, empty, or (for ``floating``) of integers."""
    if tensor.is_complex():
        raise DataError(f"{name} has dtype {tensor.dtype}; give real inputs (torch.view_as_real splits complex ones)")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise DataError(f"{name} is sparse or quantised; give a dense tensor (x.to_dense() or x.dequantize())")
    if tensor.is_floating_point() and tensor.element_size() < 2:  # torch computes nothing in eight bits
        raise DataError(f"{name} has dtype {tensor.dtype}, which torch only stores; convert it (x.float())")
    if floating and not tensor.is_floating_point():
        raise DataError(
            f"{name} has dtype {tensor.dtype}, which cannot be differentiated; give floating-point inputs "
            "(x.float(), or for token ids a dict with input_ids)"
        )
    return tensor


def numbers_of(value: Any) -> Tensor | None:
    """A list of numbers as a tensor, and ``None`` for anything else; records of data sets hold such lists."""
    leaf = value
    while isinstance(leaf, list | tuple) and leaf:
        if any(map(is_array, leaf)):  # numpy would join tensors in a list to one array
            return None
        leaf = leaf[0]
    if leaf is value or not isinstance(leaf, int | float | np.number):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return torch.from_numpy(array) if array.dtype.kind in "biuf" else None


def as_number(value: Any) -> Any:
    """A number in a sample as a tensor of 64 bits, as a loader makes it one; a switch (``bool``) stays what it is.

    >>> as_number(2), as_number(0.5), as_number(True)
    (tensor(2), tensor(0.5000, dtype=torch.float64), True)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def is_scalar_label(value: Any) -> bool:
    """One integer or one text: what labels one sample, and what no model takes for a batch of one.

    >>> is_scalar_label(3), is_scalar_label("cat"), is_scalar_label(torch.tensor(3)), is_scalar_label(torch.zeros(3))
    (True, True, True, False)
    """
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point() and not value.is_complex()
    if isinstance(value, np.ndarray | np.generic):
        return value.ndim == 0 and value.dtype.kind in "biuUS"
    return isinstance(value, int | str | bytes)
