"""Derivatives of operators that torch itself knows nothing of.

An operator of another library (``torchvision::roi_align``) may have a backward formula and no forward one, and torch
then takes its output for a constant without a word. It does so in reverse mode, with a warning, where an operator has
no formula at all. Here both are errors, or the operator's own formula is used where one is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rankscope.linear.assignments import assign, is_assignment, is_request, request
from rankscope.linear.constant_weights import CONSTANT_WEIGHTS

__all__ = ["Differentiated"]

_OWN = {"aten", "prim", "prims", "profiler"}
_NO_FORMULA = (
    "torch::autograd::WarnNotImplemented"  # torch's class of the node that it puts in place of a missing formula
)
# linear in their first argument, and constant in the regions, as their backward formulas have it
_LINEAR = {"torchvision::roi_align"}


def _tangent(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    found: Tensor | None = forward_ad.unpack_dual(value).tangent
    return found


class Differentiated(TorchFunctionMode):
    """Inside, an operator of another library has a derivative in the mode that is used or raises an error."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_assignment(func, args):
            return assign(*args)
        if is_request(func, args):
            return request(*args, **kwargs)
        if func in CONSTANT_WEIGHTS:
            made = CONSTANT_WEIGHTS[func](*args, **kwargs)
            if made is not None:
                return made
        out = func(*args, **kwargs)
        name = _foreign(func)
        if name and any(_is_constant(o) for o in tree_leaves(out)):
            raise NotImplementedError(f"{name} has no derivative")
        if not name or not any(_tangent(a) is not None for a in tree_leaves((args, kwargs))):
            return out
        numbers = [o for o in tree_leaves(out) if isinstance(o, Tensor) and o.is_floating_point()]
        if not numbers or any(_tangent(o) is not None for o in numbers):  # places and counts have no derivative
            return out
        if name not in _LINEAR or not args:
            raise NotImplementedError(f"{name} has no forward-mode formula")
        tangent = _tangent(args[0])
        return out if tangent is None else forward_ad.make_dual(out, func(tangent, *args[1:], **kwargs))


def _is_constant(value: Any) -> bool:
    """Whether torch takes for a constant what was computed from a tensor that requires a gradient."""
    node = value.grad_fn if isinstance(value, Tensor) else None
    return node is not None and str(node.name()) == _NO_FORMULA


def _foreign(func: Any) -> str:
    """The name of an operator of another library; empty for everything else."""
    if isinstance(func, torch._ops.OpOverload):
        func = func._overloadpacket
    if not isinstance(func, torch._ops.OpOverloadPacket):
        return ""
    name = str(func._qualified_op_name)
    return "" if name.partition("::")[0] in _OWN else name
