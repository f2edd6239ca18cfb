"""Tangent rules: how one operator maps a chunk of tangents, given the values at the linearisation point.

A tangent has the shape of the operator's value with the chunk in front. A rule gets the tangents of the arguments that
depend on the input (``None`` for one that is zero), and for each whether it may be overwritten; it returns the output's
tangent, or ``None`` for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankscope.linear.layer_rules import LAYERS
from rankscope.linear.matrix_rules import MATRIX_RULES
from rankscope.linear.moving_rules import TUPLES, VIEWS, Push, Tangent, cat_rule, copy_rule

__all__ = ["Push", "rule_for"]

aten = torch.ops.aten


def rule_for(node: fx.Node, args: Any, kwargs: Any, out: Any, depends: set[str]) -> Push:
    """The tangent rule of one operator call."""
    target: Any = node.target
    which = [isinstance(a, fx.Node) and a.name in depends for a in node.args]
    if target in VIEWS and sum(which) == 1 and which[0]:
        return VIEWS[target](args, kwargs, out)
    if target in TUPLES:
        return TUPLES[target](args, out)
    if target is aten.copy.default and args[0].dtype == args[1].dtype:
        return copy_rule(node, args, out, depends)
    if target is aten.cat.default:
        return cat_rule(node, args, out, depends)
    distinct = len({a.name for a, w in zip(node.args, which, strict=True) if w and isinstance(a, fx.Node)}) == sum(
        which
    )
    if target in MATRIX_RULES and distinct:
        push = MATRIX_RULES[target](args, kwargs, out, which)
        if push is not None:
            return push
    if target in LAYERS and which[0] and sum(which) == 1:
        push = LAYERS[target](args, kwargs, out)
        if push is not None:
            return push
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags and isinstance(out, Tensor):
        push = _pointwise(node, target, args, kwargs, out, depends)
        if push is not None:
            return push
    return _generic(node, target, args, kwargs, depends)


# ---- element-wise operators: a sum of tangents times partial derivatives -----------------------------------------


def _pointwise(node: fx.Node, target: Any, args: Any, kwargs: Any, out: Tensor, depends: set[str]) -> Push | None:
    places = [i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.name in depends]
    if not out.is_floating_point():
        return None if out.is_complex() else (lambda t, _: None)
    if len(places) != len([n for n in node.all_input_nodes if n.name in depends]):
        return None
    if any(not args[i].is_floating_point() for i in places):
        return None
    constant = len([n for n in node.all_input_nodes if n.name in depends]) == 1
    partials = [_partial(target, args, kwargs, i, out, constant=constant) for i in places]
    ndims = [args[i].ndim for i in places]
    shape = tuple(out.shape)

    def lifted(t: Tensor, ndim: int) -> Tensor:
        return t if ndim == len(shape) else t.reshape(t.shape[0], *(1,) * (len(shape) - ndim), *t.shape[1:])

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        total: Tensor | None = None
        owned = False
        for tangent, partial, ndim, own in zip(t, partials, ndims, reuse, strict=True):
            if tangent is None:
                continue
            value = lifted(tangent, ndim)
            own = own and tuple(value.shape[1:]) == shape
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

    return push


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
        return target(*args[:place], value, *args[place + 1 :], **kwargs)

    value = args[place]
    if value.shape != out.shape:
        value = value.expand(out.shape)
    value = _without_overlap(value)
    derivative: Tensor = jvp(alone, (value,), (torch.ones_like(value),))[1]
    if constant and name is aten.where and bool((derivative == 1).all()):
        return 1.0  # a mask that masks nothing, on every image
    return derivative


def _without_overlap(value: Tensor) -> Tensor:
    """The same values in memory of their own: a dual number writes to every element of its tangent."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
    return value.contiguous() if overlaps else value


# ---- everything else -------------------------------------------------------------------------------------------------


def _generic(node: fx.Node, target: Any, args: Any, kwargs: Any, depends: set[str]) -> Push:
    """``vmap(jvp)`` of this operator alone."""
    flat_nodes, _ = tree_flatten((list(node.args), dict(node.kwargs)))
    flat_values, spec = tree_flatten((list(args), dict(kwargs)))
    order = list(dict.fromkeys(n.name for n in node.all_input_nodes if n.name in depends))
    places = {
        name: [i for i, n in enumerate(flat_nodes) if isinstance(n, fx.Node) and n.name == name] for name in order
    }
    if any(not isinstance(flat_values[p[0]], Tensor) for p in places.values()):
        raise NotImplementedError(f"{target} takes a tuple of values")
    primals = tuple(_without_overlap(flat_values[places[name][0]]) for name in order)
    floating = [p.is_floating_point() or p.is_complex() for p in primals]

    def call(*values: Tensor) -> Any:
        filled = list(flat_values)
        for name, value in zip(order, values, strict=True):
            for i in places[name]:
                filled[i] = value
        new_args, new_kwargs = tree_unflatten(filled, spec)
        return target(*new_args, **new_kwargs)

    if not any(floating):
        return lambda t, _: None
    varying = [i for i, f in enumerate(floating) if f]

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        live = [i for i in varying if t[i] is not None]
        if not live:
            return None

        def one(*tangents: Tensor) -> Any:
            def part(*values: Tensor) -> Any:
                full = list(primals)
                for i, v in zip(live, values, strict=True):
                    full[i] = v
                return call(*full)

            return jvp(part, tuple(primals[i] for i in live), tangents)[1]

        out = vmap(one, randomness="same")(*(t[i] for i in live))
        return list(out) if isinstance(out, tuple) else out

    return push
