"""Rules of operators that move or sum values: the same move one dimension further in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankscope.linear.regions import Axis, Region, carried, positions_of, reshaped, take
from rankscope.linear.rule import Call, Derived, Push, Rule, Tangent, first_alone, shifted, whole_of

__all__ = ["MOVING"]

aten = torch.ops.aten


def _of_first(move: Callable[[Tensor], Any]) -> Push:
    return lambda t, _: None if t[0] is None else move(t[0])


def _reshape(call: Call) -> Derived:
    how = reshaped(call.region, tuple(call.out.shape))
    return Derived(_of_first(how.push), how.gives)


def _permute(call: Call) -> Derived:
    dims = [d % call.out.ndim for d in call.args[1]]
    order = [0, *(d + 1 for d in dims)]
    gives = Region(tuple(call.out.shape), tuple(call.region.axes[d] for d in dims))
    return Derived(_of_first(lambda t: t.permute(order)), gives)


def _exchanged(call: Call, a: int, b: int) -> Derived:
    axes = list(call.region.axes)
    axes[a], axes[b] = axes[b], axes[a]
    return Derived(_of_first(lambda t: t.transpose(a + 1, b + 1)), Region(tuple(call.out.shape), tuple(axes)))


def _transpose(call: Call) -> Derived:
    ndim = call.out.ndim
    if ndim == 0:
        return _same(call)
    return _exchanged(call, call.args[1] % ndim, call.args[2] % ndim)


def _matrix_transpose(call: Call) -> Derived:
    return _same(call) if call.out.ndim < 2 else _exchanged(call, 0, 1)


def _unsqueeze(call: Call) -> Derived:
    dim = call.args[1] % call.out.ndim
    axes = list(call.region.axes)
    axes.insert(dim, range(1))
    return Derived(_of_first(lambda t: t.unsqueeze(dim + 1)), Region(tuple(call.out.shape), tuple(axes)))


def _chosen(region: Region, dim: int, positions: range) -> tuple[Axis, Callable[[Tensor], Tensor]]:
    """Some positions of one dimension, which become 0, 1, …: the region's among them, and how a tangent gives those.

    Positions outside of the dimension count, and nothing is there.
    """
    have = positions_of(region.axes[dim])
    wanted = np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
    at = np.minimum(np.searchsorted(have, wanted), max(len(have) - 1, 0))
    both = np.flatnonzero(have[at] == wanted) if len(have) else at[:0]
    if not len(both):
        some = range(min(len(wanted), 1))
        return some, lambda t: t.new_zeros(*t.shape[: dim + 1], len(some), *t.shape[dim + 2 :])
    kept, sources = carried(both), at[both]
    if len(sources) == len(have):
        return kept, lambda t: t
    first, last = int(sources[0]), int(sources[-1])
    step = int(sources[1]) - first if len(sources) > 1 else 1
    if np.array_equal(sources, np.arange(first, last + 1, step)):
        return kept, lambda t: aten.slice.Tensor(t, dim + 1, first, last + 1, step)
    places = carried(sources)
    return kept, lambda t: take(t, dim + 1, places)


def _one(position: int) -> range:
    return range(position, position + 1)


def _with_axis(region: Region, dim: int, size: int, axis: Axis) -> Region:
    shape, axes = list(region.shape), list(region.axes)
    shape[dim], axes[dim] = size, axis
    return Region(tuple(shape), tuple(axes))


def _select(call: Call) -> Derived:
    ndim = call.args[0].ndim
    dim = call.args[1] % ndim
    _, move = _chosen(call.region, dim, _one(call.args[2] % call.args[0].shape[dim]))
    axes = tuple(a for d, a in enumerate(call.region.axes) if d != dim)
    return Derived(_of_first(lambda t: move(t).squeeze(dim + 1)), Region(tuple(call.out.shape), axes))


def _slice(call: Call) -> Derived:
    args = call.args
    dim = (args[1] if len(args) > 1 else 0) % args[0].ndim
    start, stop, step = (*args[2:], *(None, None, 1)[len(args) - 2 :]) if len(args) > 2 else (None, None, 1)
    positions = range(args[0].shape[dim])[slice(start, stop, step)]
    axis, move = _chosen(call.region, dim, positions)
    return Derived(_of_first(move), _with_axis(call.region, dim, call.out.shape[dim], axis))


def _expand(call: Call) -> Derived:
    return _expanded(call.region, tuple(call.out.shape))


def _expanded(region: Region, shape: tuple[int, ...]) -> Derived:
    ahead = len(shape) - len(region.shape)
    axes: list[Axis] = [range(n) for n in shape[:ahead]]
    for axis, size, wanted in zip(region.axes, region.shape, shape[ahead:], strict=True):
        axes.append(axis if size == wanted else range(wanted))
    gives = Region(shape, tuple(axes))

    def move(t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], *(1,) * ahead, *t.shape[1:]).expand(t.shape[0], *gives.sizes)

    return Derived(_of_first(move), gives)


def _same(call: Call) -> Derived:
    return Derived(lambda t, _: t[0], call.regions[0])


def _converted(call: Call) -> Derived | None:
    """Another dtype or layout: the tangent is rounded as the value is."""
    if call.out.is_complex() or call.args[0].is_complex():
        return None
    if not call.out.is_floating_point() or not call.args[0].is_floating_point():
        return _zero(call)
    dtype = call.out.dtype
    return Derived(_of_first(lambda t: t.to(dtype)), call.region)


def _zero(call: Call) -> Derived:
    return Derived(lambda t, _: None)


def _pad(call: Call) -> Derived:
    pad = list(call.args[1])
    if call.whole:
        return Derived(_of_first(lambda t: aten.constant_pad_nd(t, pad, 0.0)))
    region, moves = call.region, []
    for place in range(0, len(pad), 2):  # the last dimension comes first
        dim = call.out.ndim - 1 - place // 2
        before, size = pad[place], call.out.shape[dim]
        inside = range(-before, size - before)
        axis, move = _chosen(region, dim, inside)
        region = _with_axis(region, dim, size, axis)
        moves.append(move)

    def every(t: Tensor) -> Tensor:
        for move in moves:
            t = move(t)
        return t

    return Derived(_of_first(every), region)


def _roll(call: Call) -> Derived:
    shifts, dims = list(call.args[1]), list(call.args[2]) if len(call.args) > 2 else []
    if not dims:
        whole = whole_of(call.args[0])
        return Derived(_of_first(lambda t: t.flatten(1).roll(shifts, 1).view(t.shape)), whole, (whole,))
    region, turns = call.region, []
    for shift, d in zip(shifts, dims, strict=True):
        dim = d % call.out.ndim
        size, axis = region.shape[dim], region.axes[dim]
        far = shift % size if size else 0
        places = positions_of(axis) + far
        turns.append(int((places >= size).sum()))  # those that pass the end come first
        region = _with_axis(region, dim, size, carried(np.sort(places % max(size, 1))))
    moved = [shifted(d, call.out.ndim) for d in dims]
    return Derived(_of_first(lambda t: t.roll(turns, moved)), region)


def _reduce(call: Call, *, average: bool) -> Derived:
    args, ndim = call.args, call.args[0].ndim
    dims = args[1] if len(args) > 1 and args[1] is not None else []
    dims = [dims] if isinstance(dims, int) else list(dims)
    chosen = sorted({d % max(ndim, 1) for d in dims or range(ndim)})  # no dimensions mean all of them
    keep = bool(args[2]) if len(args) > 2 else False
    dtype = call.kwargs.get("dtype")
    axes = [(range(1) if d in chosen else a) for d, a in enumerate(call.region.axes) if keep or d not in chosen]
    gives = Region(tuple(call.out.shape), tuple(axes))
    moved = [d + 1 for d in chosen]
    share = 1.0
    if average:
        for d in chosen:
            share *= call.region.sizes[d] / max(call.region.shape[d], 1)
    reduced: Any = torch.mean if average else torch.sum

    def move(t: Tensor) -> Tensor:
        if not moved:
            return t.to(dtype or t.dtype)
        found: Tensor = reduced(t, moved, keep, dtype=dtype)
        return found if share == 1.0 else found * share

    return Derived(_of_first(move), gives)


def _mean(call: Call) -> Derived:
    return _reduce(call, average=True)


def _sum(call: Call) -> Derived:
    return _reduce(call, average=False)


def _getitem(call: Call) -> Derived:
    index = call.args[1]
    gives = call.regions[0][index]
    return Derived(_of_first(lambda t: t[index]), gives)


def _unbind(call: Call) -> Derived:
    dim = (call.args[1] if len(call.args) > 1 else 0) % call.args[0].ndim
    region = call.region
    moves = [_chosen(region, dim, _one(i))[1] for i in range(region.shape[dim])]
    axes = tuple(a for d, a in enumerate(region.axes) if d != dim)
    gives = [Region(tuple(o.shape), axes) for o in call.out]
    if region.sizes[dim] == region.shape[dim]:
        return Derived(_of_first(lambda t: list(t.unbind(dim + 1))), gives)
    return Derived(_of_first(lambda t: [move(t).squeeze(dim + 1) for move in moves]), gives)


def _split(call: Call) -> Derived:
    dim = (call.args[2] if len(call.args) > 2 else 0) % call.args[0].ndim
    region = call.region
    moves, gives, start = [], [], 0
    for part in call.out:
        size = part.shape[dim]
        axis, move = _chosen(region, dim, range(start, start + size))
        moves.append(move)
        gives.append(_with_axis(region, dim, size, axis))
        start += size
    return Derived(_of_first(lambda t: [move(t) for move in moves]), gives)


def _cat(call: Call) -> Derived:
    """Members that do not depend on the input have a zero tangent."""
    members: Any = call.node.args[0]
    dim = (call.args[1] if len(call.args) > 1 else 0) % call.out.ndim
    order = [call.sources.index(m.name) if m.name in call.depends else None for m in members]
    if any(a.ndim != call.out.ndim for a in call.args[0]):  # an empty vector, which torch leaves out
        raise NotImplementedError("torch.cat of tensors of different dimensions")
    whole = call.whole
    others = Region.whole(call.out.shape) if whole else None
    for source in order:
        if source is not None and not whole:
            part = _with_axis(call.regions[source], dim, call.out.shape[dim], range(1))
            others = part if others is None else others.union(part)
    assert others is not None
    takes: list[Region] = list(call.regions)
    positions = [np.zeros(0, dtype=np.int64)]
    parts: list[tuple[int | None, tuple[int, ...]]] = []
    start = 0
    for source, value in zip(order, call.args[0], strict=True):
        size = value.shape[dim]
        if source is not None:
            here = _with_axis(others, dim, size, call.regions[source].axes[dim])
            takes[source] = here
            positions.append(start + positions_of(here.axes[dim]))
            parts.append((source, here.sizes))
        elif whole:
            parts.append((None, tuple(value.shape)))
        start += size
    axis = range(call.out.shape[dim]) if whole else carried(np.concatenate(positions))

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        live = next((v for v in t if v is not None), None)
        if live is None:
            return None
        filled = []
        for source, sizes in parts:
            tangent = None if source is None else t[source]
            filled.append(live.new_zeros(live.shape[0], *sizes) if tangent is None else tangent)
        return torch.cat(filled, dim + 1)

    return Derived(push, _with_axis(others, dim, call.out.shape[dim], axis), tuple(takes))


def _copy(call: Call) -> Derived | None:
    """What was there before is overwritten: only the source's tangent remains."""
    if call.args[0].dtype != call.args[1].dtype:
        return None
    source: Any = call.node.args[1]
    if not hasattr(source, "name") or source.name not in call.depends:
        return Derived(lambda t, _: None)
    place = call.sources.index(source.name)
    spread = _expanded(call.regions[place], tuple(call.out.shape))
    return Derived(lambda t, reuse: spread.push([t[place]], [reuse[place]]), spread.gives)


def _rule(derive: Callable[[Call], Derived | None]) -> Rule:
    return Rule(first_alone(derive))


MOVING: dict[Any, Rule] = {
    aten.view.default: _rule(_reshape),
    aten._unsafe_view.default: _rule(_reshape),
    aten.reshape.default: _rule(_reshape),
    aten.squeeze.default: _rule(_reshape),
    aten.squeeze.dim: _rule(_reshape),
    aten.squeeze.dims: _rule(_reshape),
    aten.permute.default: _rule(_permute),
    aten.transpose.int: _rule(_transpose),
    aten.t.default: _rule(_matrix_transpose),
    aten.unsqueeze.default: _rule(_unsqueeze),
    aten.select.int: _rule(_select),
    aten.slice.Tensor: _rule(_slice),
    aten.expand.default: _rule(_expand),
    aten.clone.default: _rule(_same),  # the trace is functional: no copy is ever written to
    aten.alias.default: _rule(_same),  # a view of the whole; detach() is refused where it may be meant
    aten._to_copy.default: _rule(_converted),
    aten.lift_fresh_copy.default: _rule(_same),
    aten.contiguous.default: _rule(_same),
    aten.detach.default: _rule(_zero),
    aten.constant_pad_nd.default: _rule(_pad),
    aten.roll.default: _rule(_roll),
    aten.mean.dim: _rule(_mean),
    aten.mean.default: _rule(_mean),
    aten.sum.dim_IntList: _rule(_sum),
    aten.sum.default: _rule(_sum),
    aten.ones_like.default: _rule(_zero),
    aten.zeros_like.default: _rule(_zero),
    aten.empty_like.default: _rule(_zero),
    aten.gt.Scalar: _rule(_zero),
    aten.ge.Scalar: _rule(_zero),
    aten.lt.Scalar: _rule(_zero),
    aten.le.Scalar: _rule(_zero),
    aten.eq.Scalar: _rule(_zero),
    aten.ne.Scalar: _rule(_zero),
    aten.copy.default: Rule(_copy),
    aten.cat.default: Rule(_cat),
    operator.getitem: Rule(_getitem),
    aten.unbind.int: _rule(_unbind),
    aten.split.Tensor: _rule(_split),
    aten.split_with_sizes.default: _rule(_split),
}
