"""Tensors from what people hand over as numbers: tensors, arrays, lists, data frames; what is none of them is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankscope._base.errors import DataError

__all__ = ["as_tensor", "dense"]


def as_tensor(value: Any, name: str) -> Tensor:
    """The tensor behind a tensor, an array or a nested list of numbers; memory is shared where it can be.

    >>> as_tensor([[1.0, 2.0]], "inputs").shape
    torch.Size([1, 2])
    """
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # nested lists of unequal length
        raise DataError(f"{name} is a {type(value).__name__} of unequal parts; give a tensor or an array") from error
    if array.dtype == object or array.dtype.kind in "USMmV":
        held = {"U": "text", "S": "text", "M": "dates", "m": "durations", "V": "records"}.get(
            array.dtype.kind, "objects"
        )
        what = f"a {type(value).__name__}" if array.ndim == 0 else f"an array of {held} (shape {array.shape})"
        raise DataError(f"{name} is {what}, not numbers; give a tensor or an array of numbers")
    native = array.dtype.newbyteorder("=")
    if array.dtype != native or not array.flags.writeable or any(s < 0 for s in array.strides):
        array = array.astype(native, copy=True, order="C")
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise DataError(f"{name} has dtype {array.dtype}, which torch does not have; convert it to float32") from None


def dense(values: Any, name: str) -> Tensor:
    """The tensor behind a tensor, an array or a list of numbers, all of whose entries are there.

    Raises
    ------
    DataError
        Sparse, quantised and meta tensors, and arrays of which entries are masked.
    """
    if np.ma.is_masked(values):
        hidden = int(np.ma.count_masked(values))
        raise DataError(f"{name}: {hidden} entries of this masked array are hidden; leave their samples out")
    tensor = as_tensor(values, name)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise DataError(f"{name} is sparse or quantised; give a dense tensor (x.to_dense() or x.dequantize())")
    if tensor.is_meta:
        raise DataError(f"{name} is on the meta device and holds no numbers; give a tensor with values")
    return tensor
