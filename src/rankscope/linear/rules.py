"""The registry of operator rules, and the way of every operator that has none: ``vmap(jvp)`` of itself alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankscope.linear.layer_rules import LAYERS
from rankscope.linear.matrix_rules import MATRICES
from rankscope.linear.moving_rules import MOVING
from rankscope.linear.pointwise_rules import pointwise, without_overlap
from rankscope.linear.rule import Call, Derived, Rule, Tangent, whole_of

__all__ = ["RULES", "derive"]

RULES: dict[Any, Rule] = {**MOVING, **LAYERS, **MATRICES}


def derive(call: Call) -> Derived:
    """The derivative of one operator call."""
    target: Any = call.node.target
    rule = RULES.get(target)
    found = rule.derive(call) if rule is not None and rule.derive is not None else None
    if found is None and isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        found = pointwise(call)
    return found if found is not None else _generic(call)


def _generic(call: Call) -> Derived:
    """``vmap(jvp)`` of this operator alone, of whole tangents."""
    target: Any = call.node.target
    flat_nodes, _ = tree_flatten((list(call.node.args), dict(call.node.kwargs)))
    flat_values, spec = tree_flatten((list(call.args), dict(call.kwargs)))
    order = call.sources
    places = {
        name: [i for i, n in enumerate(flat_nodes) if isinstance(n, fx.Node) and n.name == name] for name in order
    }
    if any(not isinstance(flat_values[p[0]], Tensor) for p in places.values()):
        raise NotImplementedError(f"{target} takes a tuple of values")
    primals = tuple(without_overlap(flat_values[places[name][0]]) for name in order)
    floating = [p.is_floating_point() or p.is_complex() for p in primals]

    def run(*values: Tensor) -> Any:
        filled = list(flat_values)
        for name, value in zip(order, values, strict=True):
            for i in places[name]:
                filled[i] = value
        new_args, new_kwargs = tree_unflatten(filled, spec)
        return target(*new_args, **new_kwargs)

    if not any(floating):
        return Derived(lambda t, _: None)
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
                return run(*full)

            return jvp(part, tuple(primals[i] for i in live), tangents)[1]

        out = vmap(one, randomness="same")(*(t[i] for i in live))
        return list(out) if isinstance(out, tuple) else out

    return Derived(push, takes=tuple(whole_of(p) for p in primals))
