"""Tangent rules of operators that move or sum values: the same move one dimension further in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["TUPLES", "VIEWS", "Push", "Tangent", "cat_rule", "copy_rule", "shifted"]

Tangent = Any
Push = Callable[[Sequence[Tangent], Sequence[bool]], Tangent]
aten = torch.ops.aten


def shifted(dim: int, ndim: int) -> int:
    return dim % max(ndim, 1) + 1


def _reshape(args: Any, kwargs: Any, out: Tensor) -> Push:
    shape = tuple(out.shape)
    return lambda t, _: None if t[0] is None else t[0].reshape(t[0].shape[0], *shape)


def _permute(args: Any, kwargs: Any, out: Tensor) -> Push:
    order = [0, *(shifted(d, out.ndim) for d in args[1])]
    return lambda t, _: None if t[0] is None else t[0].permute(order)


def _transpose(args: Any, kwargs: Any, out: Tensor) -> Push:
    a, b = shifted(args[1], out.ndim), shifted(args[2], out.ndim)
    return lambda t, _: None if t[0] is None else t[0].transpose(a, b)


def _matrix_transpose(args: Any, kwargs: Any, out: Tensor) -> Push:
    return lambda t, _: None if t[0] is None else (t[0] if out.ndim < 2 else t[0].transpose(1, 2))


def _unsqueeze(args: Any, kwargs: Any, out: Tensor) -> Push:
    dim = args[1] % out.ndim + 1
    return lambda t, _: None if t[0] is None else t[0].unsqueeze(dim)


def _select(args: Any, kwargs: Any, out: Tensor) -> Push:
    dim, index = shifted(args[1], args[0].ndim), args[2]
    return lambda t, _: None if t[0] is None else t[0].select(dim, index)


def _slice(args: Any, kwargs: Any, out: Tensor) -> Push:
    dim = shifted(args[1] if len(args) > 1 else 0, args[0].ndim)
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
    moved = [shifted(d, out.ndim) for d in dims]
    return lambda t, _: None if t[0] is None else t[0].roll(shifts, moved)


def _reduce(args: Any, kwargs: Any, operator: Any) -> Push:
    ndim = args[0].ndim
    dims = args[1] if len(args) > 1 and args[1] is not None else []
    dims = [dims] if isinstance(dims, int) else list(dims)
    moved = [shifted(d, ndim) for d in dims or range(ndim)]  # no dimensions mean all of them
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


VIEWS: dict[Any, Callable[[Any, Any, Any], Push]] = {
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
    dim = shifted(args[1] if len(args) > 1 else 0, args[0].ndim)
    return lambda t, _: None if t[0] is None else list(t[0].unbind(dim))


def _split(args: Any, out: Any) -> Push:
    dim = shifted(args[2] if len(args) > 2 else 0, args[0].ndim)
    sizes = [o.shape[dim - 1] for o in out]
    return lambda t, _: None if t[0] is None else list(t[0].split(sizes, dim))


def cat_rule(node: fx.Node, args: Any, out: Tensor, depends: set[str]) -> Push:
    """Members that do not depend on the input have a zero tangent."""
    dim = shifted(args[1] if len(args) > 1 else 0, out.ndim)
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


def copy_rule(node: fx.Node, args: Any, out: Tensor, depends: set[str]) -> Push:
    """What was there before is overwritten: only the source's tangent remains."""
    order = list(dict.fromkeys(n.name for n in node.all_input_nodes if n.name in depends))
    source: Any = node.args[1]
    if not isinstance(source, fx.Node) or source.name not in depends:
        return lambda t, _: None
    place = order.index(source.name)
    spread = _expand((args[1],), {}, out)
    return lambda t, reuse: spread([t[place]], [reuse[place]])


TUPLES: dict[Any, Callable[[Any, Any], Push]] = {
    operator.getitem: _getitem,
    aten.unbind.int: _unbind,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
}
