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
from rankscope.linear.other_libraries import Differentiated
from rankscope.linear.pointwise_rules import pointwise, without_overlap
from rankscope.linear.rule import Call, Derived, Rule, Tangent, whole_of

__all__ = ["RULES", "derive", "ties"]

_ELEMENTWISE = (
    "abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh ceil clamp clamp_max clamp_min cos cosh div elu eq "
    "erf erfc erfinv exp exp2 expm1 fill floor fmod frac ge gelu gt hardshrink hardsigmoid hardswish "
    "hardtanh hypot isfinite isinf isnan le leaky_relu lerp log log10 log1p log2 logaddexp logical_and logical_not "
    "logical_or lt masked_fill maximum minimum mish mul nan_to_num ne neg pow reciprocal relu remainder round rsqrt "
    "rsub sgn sigmoid sign silu sin sinc sinh softplus softshrink sqrt square sub tan tanh threshold trunc where xlogy"
)
# by vmap(jvp) of itself, and torch's two formulas agree at ties too
_OTHERS = (
    "_log_softmax _unsafe_index adaptive_max_pool2d addmv amax amin aminmax avg_pool3d baddbmm col2im cummax cummin "
    "cumprod cumsum diagonal dot embedding flip full_like gather glu im2col index index_select kthvalue "
    "linalg_vector_norm log_sigmoid_forward logsumexp max max_pool3d_with_indices median min mv norm prod "
    "reflection_pad1d reflection_pad2d repeat replication_pad1d replication_pad2d select_scatter slice_scatter sort "
    "std topk tril triu unfold upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d "
    "upsample_nearest2d var var_mean celu huber_loss smooth_l1_loss"
)


def _overloads(names: str) -> list[Any]:
    packets = [getattr(torch.ops.aten, name) for name in names.split() if hasattr(torch.ops.aten, name)]
    return [getattr(packet, overload) for packet in packets for overload in packet.overloads()]


def _at_zero(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x == 0


def _equal(x: Tensor, other: Tensor) -> Tensor:
    return x == other


RULES: dict[Any, Rule] = {
    **{target: Rule(pointwise) for target in _overloads(_ELEMENTWISE)},
    **{target: Rule() for target in _overloads(_OTHERS)},
    # forward mode takes the side of x >= 0, reverse mode that of x > 0
    **{target: Rule(pointwise, ties=_at_zero) for target in _overloads("_prelu_kernel prelu")},
    # some versions of torch share the derivative of equal values in one mode and not in the other
    **{target: Rule(pointwise, ties=_equal) for target in _overloads("fmax fmin")},
    **MOVING,
    **LAYERS,
    **MATRICES,
}
"""By operator. Of one that does not stand here nothing is known of its two modes."""


def ties(call: Call) -> Tensor | None:
    """Whether a call lies where torch's two modes differ; ``None`` where they differ nowhere or nothing is known."""
    rule = RULES.get(call.node.target)
    return None if rule is None or rule.ties is None else rule.ties(*call.args, **call.kwargs).any()


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
                with Differentiated():
                    return run(*full)

            return jvp(part, tuple(primals[i] for i in live), tangents)[1]

        out = vmap(one, randomness="same")(*(t[i] for i in live))
        return list(out) if isinstance(out, tuple) else out

    return Derived(push, takes=tuple(whole_of(p) for p in primals))
