"""Tensors from what people hand over as numbers: tensors, arrays, lists, data frames; what is none of them is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.masked import MaskedTensor

from rankscope._base.errors import DataError

__all__ = ["as_tensor", "dense"]


def as_tensor(value: Any, name: str) -> Tensor:
    """The tensor behind a tensor, an array or a nested list of numbers; memory is shared where it can be.

    >>> as_tensor([[1.0, 2.0]], "inputs").shape
    torch.Size([1, 2])

    Raises
    ------
    DataError
        What holds no numbers (meta and fake tensors), hides some (masked arrays and tensors), or is no array (nested
        tensors, text, objects).
    """
    if isinstance(value, Tensor):
        _with_values(value, name)
        return value.detach()
    hidden = _hidden(value)
    if hidden:
        raise DataError(f"{name}: {hidden} entries of this masked array are hidden; leave their samples out")
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
        Sparse and quantised tensors, and whatever ``as_tensor`` refuses.
    """
    tensor = as_tensor(values, name)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise DataError(f"{name} is sparse or quantised; give a dense tensor (x.to_dense() or x.dequantize())")
    return tensor


def _with_values(tensor: Tensor, name: str) -> None:
    """Refuse tensors that hold no numbers, hide some, or have no one shape."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        raise DataError(f"{name} is on the meta device and holds no numbers; give a tensor with values")
    if tensor.is_nested:
        raise DataError(f"{name} is a nested tensor; give a Dataset whose items are its parts (x.unbind())")
    if isinstance(tensor, MaskedTensor):
        raise DataError(f"{name} is a masked tensor; give a plain one (x.to_tensor(0.0)) with the mask beside it")


def _hidden(values: Any) -> int:
    """How many entries of a masked array are hidden, also of one within a list, which numpy would uncover."""
    if isinstance(values, list | tuple):
        return sum(map(_hidden, values))
    return int(np.ma.count_masked(values)) if np.ma.is_masked(values) else 0
