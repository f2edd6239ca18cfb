"""A forward pass that assigns to its own weights: ``p.data = …``, ``module.to(dtype)``, ``module.requires_grad_()``.

Under a transform of functorch what is computed of a weight is a wrapper without memory of its own. Assigned to
``weight.data`` it leaves a tensor without storage, on which torch's kernels end the process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankscope.slicing import outside_transforms, same_memory

__all__ = ["assign", "is_assignment", "is_request", "moves", "request", "sets_data"]

_functorch: Any = torch._C._functorch
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def sets_data(func: Any) -> bool:
    """Whether a call that a mode for functions sees is ``tensor.data = value``."""
    return bool(func == _SET_DATA)  # each look-up makes another object, equal to the first


def is_assignment(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the call gives memory from inside a transform to a tensor from outside."""
    return sets_data(func) and _wrapped(args[1]) and _plain(args[0])


def is_request(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the call is ``tensor.requires_grad_()`` of a tensor from outside the transforms."""
    return func is Tensor.requires_grad_ and _plain(args[0])


def assign(tensor: Tensor, value: Tensor) -> None:
    """``tensor.data = value`` with the numbers in ``value`` alone: ``data`` has no derivative.

    Raises
    ------
    NotImplementedError
        For a value that differs between the tangents of a pass, which one tensor cannot hold.
    """
    while _wrapped(value):
        if _functorch.is_batchedtensor(value):
            raise NotImplementedError("the model assigns to a weight what differs between the tangents of a pass")
        value = _functorch.get_unwrapped(value)
    with outside_transforms():
        if not same_memory(tensor, value):
            tensor.data = value


def moves(tensor: Tensor, value: Tensor) -> bool:
    """Whether ``tensor.data = value`` gives the tensor other memory, form or dtype."""
    if torch._is_functional_tensor(value):
        value = torch._from_functional_tensor(value)
    with outside_transforms():
        return not _plain(value) or not _plain(tensor) or not same_memory(tensor, value)


def request(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """``tensor.requires_grad_()``, which the transforms refuse by that name; it changes no number."""
    with outside_transforms():
        tensor.requires_grad = requires_grad
    return tensor


def _plain(value: Any) -> bool:
    """Whether a tensor is none of a class that answers for itself, and none from inside a transform."""
    return type(value) in (Tensor, nn.Parameter) and not _wrapped(value)


def _wrapped(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(_functorch.is_functorch_wrapped_tensor(value))
