"""Rules of element-wise operators: a sum of tangents times partial derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from rankscope.linear.regions import Axis, Region
from rankscope.linear.rule import Call, Derived, Tangent

__all__ = ["pointwise", "without_overlap"]

aten = torch.ops.aten


def pointwise(call: Call) -> Derived | None:
    """Any element-wise operator: on a region it is itself, of the parts of its arguments that belong to the region."""
    args, out, node = call.args, call.out, call.node
    if not isinstance(out, Tensor):
        return None
    if not out.is_floating_point():
        return None if out.is_complex() else Derived(lambda t, _: None)
    places = [i for i, w in enumerate(call.which) if w]
    if len(places) != len(call.sources) or not call.distinct:
        return None
    if any(not args[i].is_floating_point() for i in places):
        return None
    whole = tuple(out.shape)
    own = [_broadcast(r, tuple(args[i].shape), whole) for i, r in zip(places, call.regions, strict=True)]
    gives = own[0]
    for region in own[1:]:
        gives = gives.union(region)
    if not gives.is_whole:
        args = [gives.cut(a) if isinstance(a, Tensor) and _fits(a, whole) else a for a in args]
        out = gives.cut(out)
    partials = [_partial(node.target, args, call.kwargs, i, out, constant=len(places) == 1) for i in places]
    ndims = [args[i].ndim for i in places]
    shape = gives.sizes
    takes = tuple(_to_be_taken(r, tuple(call.args[i].shape), gives) for i, r in zip(places, call.regions, strict=True))

    def lifted(t: Tensor, ndim: int) -> Tensor:
        return t if ndim == len(shape) else t.reshape(t.shape[0], *(1,) * (len(shape) - ndim), *t.shape[1:])

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        total: Tensor | None = None
        owned = False
        for tangent, partial, ndim, reusable in zip(t, partials, ndims, reuse, strict=True):
            if tangent is None:
                continue
            value = lifted(tangent, ndim)
            own = reusable and tuple(value.shape[1:]) == shape
            if total is None:
                if isinstance(partial, float):
                    total, owned = (value, own) if partial == 1.0 else (value * partial, True)
                else:
                    total, owned = (value.mul_(partial) if own else value * partial), True
            elif owned and tuple(total.shape[1:]) == shape:
                if isinstance(partial, float):
                    total = total.add_(value, alpha=partial)
                else:
                    total = total.addcmul_(value, partial)
            elif own and isinstance(partial, float) and partial == 1.0:
                total, owned = value.add_(total), True
            elif isinstance(partial, float):
                total, owned = torch.add(total, value, alpha=partial), True
            else:
                total, owned = torch.addcmul(total, value, partial), True
        if total is not None and tuple(total.shape[1:]) != shape:
            total = total.expand(total.shape[0], *shape)
        return total

    return Derived(push, gives, takes)


def _fits(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor broadcasts to a shape, dimension by dimension."""
    ahead = len(shape) - value.ndim
    return ahead >= 0 and all(n in (1, m) for n, m in zip(value.shape, shape[ahead:], strict=True))


def _broadcast(region: Region, shape: tuple[int, ...], out: tuple[int, ...]) -> Region:
    """Where an argument's tangent reaches the output."""
    ahead = len(out) - len(shape)
    axes: list[Axis] = [range(n) for n in out[:ahead]]
    for axis, size, wanted in zip(region.axes, shape, out[ahead:], strict=True):
        axes.append(axis if size == wanted else range(wanted))
    return Region(out, tuple(axes))


def _to_be_taken(region: Region, shape: tuple[int, ...], gives: Region) -> Region:
    """The output's region along the dimensions that an argument has in full."""
    ahead = len(gives.shape) - len(shape)
    pairs = zip(region.axes, shape, gives.axes[ahead:], gives.shape[ahead:], strict=True)
    return Region(shape, tuple(other if size == wanted else own for own, size, other, wanted in pairs))


def _partial(target: Any, args: Any, kwargs: Any, place: int, out: Tensor, *, constant: bool) -> Tensor | float:
    """∂out/∂args[place], with out's shape or one that broadcasts to it; a number where it is constant."""
    name = target.overloadpacket
    if name is aten.add:
        return 1.0 if place == 0 else float(kwargs.get("alpha", 1))
    if name is aten.sub:
        return 1.0 if place == 0 else -float(kwargs.get("alpha", 1))
    if name is aten.mul:
        other = args[1 - place]
        return other if isinstance(other, Tensor) else float(other)
    if name is aten.div and place == 0 and len(args) == 2 and not kwargs:
        other = args[1]
        return other.reciprocal() if isinstance(other, Tensor) else 1.0 / float(other)
    if name is aten.neg:
        return -1.0

    def alone(value: Tensor) -> Tensor:
        found: Tensor = target(*args[:place], value, *args[place + 1 :], **kwargs)
        return found

    value = args[place]
    if value.shape != out.shape:
        value = value.expand(out.shape)
    value = without_overlap(value)
    derivative: Tensor = jvp(alone, (value,), (torch.ones_like(value),))[1]
    if constant and name is aten.where and bool((derivative == 1).all()):
        return 1.0  # a mask that masks nothing, on every image
    return derivative


def without_overlap(value: Tensor) -> Tensor:
    """The same values in memory of their own: a dual number writes to every element of its tangent."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
    return value.contiguous() if overlaps else value
