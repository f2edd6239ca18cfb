"""Weights that are converted each time an operator takes them, so that no second model is held.

A stand-in has the shape, strides, dtype and device of the converted weight, and no memory. torch hands an operator that
takes it over to ``__torch_dispatch__``, below every transform and below autograd: there the weight is converted, and
the copy is gone when the operator has run. What autograd keeps of it for a backward pass is the stand-in. So it does
not matter which module owns the weight or reads it, how often, and under which transform.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rankscope.linear.assignments import sets_data
from rankscope.slicing import outside_transforms
from rankscope.slicing.operands import written_into

__all__ = ["OnDemand"]

aten = torch.ops.aten
# what only says otherwise where the same entries are: it commutes with the conversion, which can wait
_PLACES = frozenset(
    {
        *(aten.alias.default, aten.as_strided.default, aten.detach.default, aten.diagonal.default, aten.expand.default),
        *(aten.permute.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default),
        *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.t.default, aten.transpose.int),
        *(aten.unbind.int, aten.unfold.default, aten.unsqueeze.default, aten.view.default),
    }
)
# what reads a tensor's memory, or hands it out, without an operator
_MEMORY = frozenset(
    {
        *(Tensor.data_ptr, Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.__deepcopy__),
        *(Tensor.__reduce_ex__, Tensor.untyped_storage, Tensor.storage, Tensor._typed_storage, Tensor.share_memory_),
        Tensor.__cuda_array_interface__.__get__,
    }
)


class _Weight:
    """What the views of one weight share: where it comes from, and its copy once something may write into that."""

    def __init__(self, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        self.tensor, self.device, self.dtype = tensor, device, dtype
        self.kept: Tensor | None = None

    def converted(self) -> Tensor:
        if self.kept is not None:
            return self.kept
        with outside_transforms():
            return self.tensor.to(self.device, self.dtype)


class OnDemand(Tensor):
    """A weight in another dtype or on another device, converted for every operator that takes it.

    ``tensor`` is dense and strided, and has another dtype or device than the two that are asked for. An operator that
    writes into the stand-in writes into a copy, which is kept from then on (``written``); ``tensor`` stays as it is.

    >>> import torch
    >>> weight = OnDemand(torch.ones(2, 3), torch.device("cpu"), torch.float64)
    >>> weight.dtype, weight.T.shape, (torch.eye(2, dtype=torch.float64) @ weight).sum().item()
    (torch.float64, torch.Size([3, 2]), 6.0)
    """

    _weight: _Weight
    _twin: Tensor  # on the meta device: this view's sizes, strides and offset

    @staticmethod
    def __new__(
        cls, tensor: Tensor, device: torch.device, dtype: torch.dtype, *, view: tuple[_Weight, Tensor] | None = None
    ) -> OnDemand:
        if view is None:
            with outside_transforms():
                view = _Weight(tensor.detach(), device, dtype), torch.empty_like(tensor, dtype=dtype, device="meta")
        weight, twin = view
        made: OnDemand = Tensor._make_wrapper_subclass(
            cls,
            twin.size(),
            strides=twin.stride(),
            storage_offset=twin.storage_offset(),
            dtype=weight.dtype,
            device=weight.device,
        )
        torch._C._set_throw_on_mutable_data_ptr(made)  # code that reads memory past Python fails instead of crashing
        made._weight, made._twin = weight, twin
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDemand(shape={tuple(self.shape)}, dtype={self.dtype})"

    @property
    def written(self) -> bool:
        """Whether something wrote into it, or may have."""
        return self._weight.kept is not None

    def converted(self) -> Tensor:
        """The weight's entries in the dtype and on the device that were asked for."""
        weight, twin = self._weight, self._twin
        place = twin.size(), twin.stride(), twin.storage_offset()
        with outside_transforms():
            if weight.kept is None and _dense(twin):  # one expert's part of a weight of many needs no more
                start = weight.tensor.storage_offset()
                part = weight.tensor.as_strided(*place[:2], start + place[2])
                return part.to(weight.device, weight.dtype)
            return weight.converted().as_strided(*place)

    def _kept(self) -> Tensor:
        self._weight.kept = self._weight.converted()
        return self.converted()

    def _viewed(self, func: Any, args: Any, kwargs: Any) -> Any:
        weight = self._weight
        with outside_transforms():
            made = func(self._twin, *args, **kwargs)
        return tree_map_only(
            Tensor, lambda twin: OnDemand(weight.tensor, weight.device, weight.dtype, view=(weight, twin)), made
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if sets_data(func):
            raise TypeError("the memory of a weight that is converted on demand cannot be exchanged")
        if func in _MEMORY:
            args = tree_map_only(OnDemand, OnDemand._kept, args)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if func in _PLACES and isinstance(args[0], OnDemand):
            return args[0]._viewed(func, args[1:], kwargs)
        written = written_into(func, args, kwargs)
        for each in written:
            if isinstance(each, OnDemand):
                each._kept()
        with torch._C.DisableTorchFunction():
            args, kwargs = tree_map_only(OnDemand, OnDemand.converted, (args, kwargs))
            made = func(*args, **kwargs)
        if not any(isinstance(each, OnDemand) for each in written) or made is None:
            return made
        return written[0] if len(written) == 1 else tuple(written)  # an operator returns what it wrote into


def _dense(tensor: Tensor) -> bool:
    """Whether the entries fill a part of the memory without gaps or overlaps: a conversion keeps their order there."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
