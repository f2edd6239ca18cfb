"""Tangent rules: how one operator maps a chunk of tangents, given the values at the linearisation point.

A tangent has the shape of the operator's value with the chunk in front. A rule gets the tangents of the arguments that
depend on the input (``None`` for one that is zero), and for each whether it may be overwritten; it returns the output's
tangent, or ``None`` for zero.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankscope.jacobian.matrix_rules import MATRIX_RULES

__all__ = ["Push", "convolution_push", "rule_for"]

Tangent = Any
Push = Callable[[Sequence[Tangent], Sequence[bool]], Tangent]
aten = torch.ops.aten


def rule_for(node: fx.Node, args: Any, kwargs: Any, out: Any, depends: set[str]) -> Push:
    """The tangent rule of one operator call."""
    target: Any = node.target
    which = [isinstance(a, fx.Node) and a.name in depends for a in node.args]
    if target in _VIEWS and sum(which) == 1 and which[0]:
        return _VIEWS[target](args, kwargs, out)
    if target in _TUPLES:
        return _TUPLES[target](args, out)
    if target is aten.copy.default and args[0].dtype == args[1].dtype:
        return _copy(node, args, out, depends)
    if target is aten.cat.default:
        return _cat(node, args, out, depends)
    if target is aten.copy.default:
        return _copy(node, args, out, depends)
    distinct = len({a.name for a, w in zip(node.args, which, strict=True) if w and isinstance(a, fx.Node)}) == sum(
        which
    )
    if target in MATRIX_RULES and distinct:
        push = MATRIX_RULES[target](args, kwargs, out, which)
        if push is not None:
            return push
    if target in _RULES and which[0] and sum(which) == 1:
        push = _RULES[target](args, kwargs, out)
        if push is not None:
            return push
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags and isinstance(out, Tensor):
        push = _pointwise(node, target, args, kwargs, out, depends)
        if push is not None:
            return push
    return _generic(node, target, args, kwargs, depends)


# ---- operators that move values: the same move one dimension further in --------------------------------------------


def _dim(dim: int, ndim: int) -> int:
    return dim % max(ndim, 1) + 1


def _reshape(args: Any, kwargs: Any, out: Tensor) -> Push:
    shape = tuple(out.shape)
    return lambda t, _: None if t[0] is None else t[0].reshape(t[0].shape[0], *shape)


def _permute(args: Any, kwargs: Any, out: Tensor) -> Push:
    order = [0, *(_dim(d, out.ndim) for d in args[1])]
    return lambda t, _: None if t[0] is None else t[0].permute(order)


def _transpose(args: Any, kwargs: Any, out: Tensor) -> Push:
    a, b = _dim(args[1], out.ndim), _dim(args[2], out.ndim)
    return lambda t, _: None if t[0] is None else t[0].transpose(a, b)


def _matrix_transpose(args: Any, kwargs: Any, out: Tensor) -> Push:
    return lambda t, _: None if t[0] is None else (t[0] if out.ndim < 2 else t[0].transpose(1, 2))


def _unsqueeze(args: Any, kwargs: Any, out: Tensor) -> Push:
    dim = args[1] % out.ndim + 1
    return lambda t, _: None if t[0] is None else t[0].unsqueeze(dim)


def _select(args: Any, kwargs: Any, out: Tensor) -> Push:
    dim, index = _dim(args[1], args[0].ndim), args[2]
    return lambda t, _: None if t[0] is None else t[0].select(dim, index)


def _slice(args: Any, kwargs: Any, out: Tensor) -> Push:
    dim = _dim(args[1] if len(args) > 1 else 0, args[0].ndim)
    rest = args[2:]
    return lambda t, _: None if t[0] is None else aten.slice.Tensor(t[0], dim, *rest)


def _expand(args: Any, kwargs: Any, out: Tensor) -> Push:
    shape, ndim = tuple(out.shape), args[0].ndim

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        source = t[0].reshape(t[0].shape[0], *(1,) * (len(shape) - ndim), *t[0].shape[1:])
        return source.expand(t[0].shape[0], *shape)

    return push


def _same(args: Any, kwargs: Any, out: Tensor) -> Push:
    return lambda t, _: t[0]


def _zero(args: Any, kwargs: Any, out: Any) -> Push:
    return lambda t, _: None


def _pad(args: Any, kwargs: Any, out: Tensor) -> Push:
    pad = args[1]
    return lambda t, _: None if t[0] is None else aten.constant_pad_nd(t[0], pad, 0.0)


def _roll(args: Any, kwargs: Any, out: Tensor) -> Push:
    shifts, dims = args[1], args[2] if len(args) > 2 else []
    if not dims:
        return lambda t, _: None if t[0] is None else t[0].flatten(1).roll(shifts, 1).view(t[0].shape)
    moved = [_dim(d, out.ndim) for d in dims]
    return lambda t, _: None if t[0] is None else t[0].roll(shifts, moved)


def _reduce(args: Any, kwargs: Any, operator: Any) -> Push:
    ndim = args[0].ndim
    dims = args[1] if len(args) > 1 and args[1] is not None else []
    dims = [dims] if isinstance(dims, int) else list(dims)
    moved = [_dim(d, ndim) for d in dims or range(ndim)]  # no dimensions mean all of them
    keep = bool(args[2]) if len(args) > 2 else False
    dtype = kwargs.get("dtype")

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        return operator(t[0], moved, keep, dtype=dtype) if moved else t[0].to(dtype or t[0].dtype)

    return push


def _mean(args: Any, kwargs: Any, out: Tensor) -> Push:
    return _reduce(args, kwargs, torch.mean)


def _sum(args: Any, kwargs: Any, out: Tensor) -> Push:
    return _reduce(args, kwargs, torch.sum)


_VIEWS: dict[Any, Callable[[Any, Any, Any], Push]] = {
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.squeeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _matrix_transpose,
    aten.unsqueeze.default: _unsqueeze,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.expand.default: _expand,
    aten.clone.default: _same,  # the trace is functional: no copy is ever written to
    aten.alias.default: _same,
    aten.lift_fresh_copy.default: _same,
    aten.contiguous.default: _same,
    aten.detach.default: _zero,
    aten.constant_pad_nd.default: _pad,
    aten.roll.default: _roll,
    aten.mean.dim: _mean,
    aten.mean.default: _mean,
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum,
    aten.ones_like.default: _zero,
    aten.zeros_like.default: _zero,
    aten.empty_like.default: _zero,
    aten.gt.Scalar: _zero,
    aten.ge.Scalar: _zero,
    aten.lt.Scalar: _zero,
    aten.le.Scalar: _zero,
    aten.eq.Scalar: _zero,
    aten.ne.Scalar: _zero,
}


def _getitem(args: Any, out: Any) -> Push:
    index = args[1]

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        value = t[0]
        if value is None:
            return None
        return value[index]

    return push


def _unbind(args: Any, out: Any) -> Push:
    dim = _dim(args[1] if len(args) > 1 else 0, args[0].ndim)
    return lambda t, _: None if t[0] is None else list(t[0].unbind(dim))


def _split(args: Any, out: Any) -> Push:
    dim = _dim(args[2] if len(args) > 2 else 0, args[0].ndim)
    sizes = [o.shape[dim - 1] for o in out]
    return lambda t, _: None if t[0] is None else list(t[0].split(sizes, dim))


def _cat(node: fx.Node, args: Any, out: Tensor, depends: set[str]) -> Push:
    """Members that do not depend on the input have a zero tangent."""
    dim = _dim(args[1] if len(args) > 1 else 0, out.ndim)
    shapes = [tuple(a.shape) for a in args[0]]
    order = list(dict.fromkeys(n.name for n in node.all_input_nodes if n.name in depends))
    members: Any = node.args[0]
    sources = [order.index(m.name) if m.name in depends else None for m in members]

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        live = next((v for v in t if v is not None), None)
        if live is None:
            return None
        parts = []
        for source, shape in zip(sources, shapes, strict=True):
            tangent = None if source is None else t[source]
            parts.append(live.new_zeros(live.shape[0], *shape) if tangent is None else tangent)
        return torch.cat(parts, dim)

    return push


def _copy(node: fx.Node, args: Any, out: Tensor, depends: set[str]) -> Push:
    """What was there before is overwritten: only the source's tangent remains."""
    order = list(dict.fromkeys(n.name for n in node.all_input_nodes if n.name in depends))
    source: Any = node.args[1]
    if not isinstance(source, fx.Node) or source.name not in depends:
        return lambda t, _: None
    place = order.index(source.name)
    spread = _expand((args[1],), {}, out)
    return lambda t, reuse: spread([t[place]], [reuse[place]])


_TUPLES: dict[Any, Callable[[Any, Any], Push]] = {
    operator.getitem: _getitem,
    aten.unbind.int: _unbind,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
}


# ---- operators with one differentiable argument --------------------------------------------------------------------


def _batched(apply: Callable[[Tensor], Tensor]) -> Push:
    """A linear operator whose first dimension counts samples: the chunk joins it."""

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        chunk = t[0].shape[0]
        out = apply(t[0].flatten(0, 1))
        return out.unflatten(0, (chunk, out.shape[0] // chunk))

    return push


def _linear_pool(op: Any) -> Callable[[Any, Any, Any], Push]:
    return lambda args, kwargs, out: _batched(lambda t: op(t, *args[1:], **kwargs))


def convolution_push(weight: Tensor, rest: Sequence[Any]) -> Push:
    """Convolution of the tangents with constant weights; ``rest`` is what follows the bias in ``aten.convolution``."""
    return _batched(lambda t: aten.convolution(t, weight, None, *rest))


def _convolution(args: Any, kwargs: Any, out: Tensor) -> Push:
    return convolution_push(args[1], args[3:])


def _batch_norm(args: Any, kwargs: Any, out: Any) -> Push | None:
    x, weight = args[0], args[1]
    mean, variance, training, eps = args[3], args[4], args[5], args[7]
    if training or mean is None or variance is None:
        return None
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    scale = scale.view(1, 1, -1, *(1,) * (x.ndim - 2))

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        return [t[0].mul_(scale) if reuse[0] else t[0] * scale, None, None, None]

    return push


def _batch_norm_no_training(args: Any, kwargs: Any, out: Any) -> Push | None:
    x, weight, bias, mean, variance, momentum, eps = args
    return _batch_norm((x, weight, bias, mean, variance, False, momentum, eps), kwargs, out)


def _layer_norm(args: Any, kwargs: Any, out: Any) -> Push | None:
    x, shape, weight = args[0], args[1], args[2]
    _, mean, rstd = out
    if len(shape) != 1:
        return None
    normalised = (x - mean) * rstd
    gain = rstd if weight is None else rstd * weight

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        along = (t[0] * normalised).mean(-1, keepdim=True)
        centred = t[0].sub_(t[0].mean(-1, keepdim=True)) if reuse[0] else t[0] - t[0].mean(-1, keepdim=True)
        return [centred.addcmul_(along, normalised, value=-1).mul_(gain), None, None]

    return push


def _group_norm(args: Any, kwargs: Any, out: Any) -> Push | None:
    x, weight, groups = args[0], args[1], args[6]
    _, mean, rstd = out
    spread = (x.shape[0], groups, 1)
    normalised = (x.reshape(x.shape[0], groups, -1) - mean.view(spread)) * rstd.view(spread)
    scale = rstd.view(spread)
    channels = None if weight is None else weight.view(1, 1, -1, *(1,) * (x.ndim - 2))

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        tangent = t[0].reshape(t[0].shape[0], *normalised.shape)
        along = (tangent * normalised).mean(-1, keepdim=True)
        centred = tangent - tangent.mean(-1, keepdim=True)
        result = centred.addcmul_(along, normalised, value=-1).mul_(scale).view(t[0].shape)
        return [result if channels is None else result.mul_(channels), None, None]

    return push


def _softmax(args: Any, kwargs: Any, out: Tensor) -> Push:
    dim = _dim(args[1], out.ndim)

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        weighted = t[0].mul_(out) if reuse[0] else t[0] * out
        return weighted.addcmul_(weighted.sum(dim, keepdim=True), out, value=-1)

    return push


def _max_pool(args: Any, kwargs: Any, out: Any) -> Push:
    indices = out[1]
    flat = indices.flatten(-2)

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        chosen = t[0].flatten(-2).gather(-1, flat.expand(t[0].shape[0], *flat.shape))
        return [chosen.unflatten(-1, indices.shape[-2:]), None]

    return push


_RULES: dict[Any, Callable[[Any, Any, Any], Push | None]] = {
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm_no_training,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _softmax,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _linear_pool(aten.avg_pool2d.default),
    aten._adaptive_avg_pool2d.default: _linear_pool(aten._adaptive_avg_pool2d.default),
    aten.pixel_unshuffle.default: _linear_pool(aten.pixel_unshuffle.default),
    aten.pixel_shuffle.default: _linear_pool(aten.pixel_shuffle.default),
}


# ---- element-wise operators: a sum of tangents times partial derivatives ---------------------------------------------


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
