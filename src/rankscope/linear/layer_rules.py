"""Rules of layers with one differentiable argument: convolutions, normalisations, softmax, pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope.linear.regions import Axis, Region, hull
from rankscope.linear.rule import Call, Derived, Push, Rule, Tangent, first_alone, shifted

__all__ = ["LAYERS", "convolution"]

aten = torch.ops.aten
_WORTH = 0.85  # of a map: where more of it is reached, the whole map is carried


def _batched(apply: Callable[[Tensor], Tensor]) -> Push:
    """A linear operator whose first dimension counts samples: the chunk joins it."""

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        chunk = t[0].shape[0]
        out = apply(t[0].flatten(0, 1))
        return out.unflatten(0, (chunk, out.shape[0] // chunk))

    return push


# ---- convolutions ----------------------------------------------------------------------------------------------------


def _spread(values: Any, dims: int) -> list[int]:
    found = [values] if isinstance(values, int) else list(values)
    return found * dims if len(found) == 1 else found


def _reached(axis: Axis, kernel: int, stride: int, padding: int, dilation: int, size: int) -> range:
    """The windows that see any of these positions; none where the stride is wider than the kernel and all miss."""
    inside = hull(axis)
    first = -(-(inside.start + padding - (kernel - 1) * dilation) // stride)
    last = (inside.stop - 1 + padding) // stride
    first, last = max(first, 0), min(last, size - 1)
    return range(first, last + 1)


def _box(region: Region, shape: Sequence[int], dims: int, axes: Sequence[Axis]) -> Region | None:
    """A region with these spatial axes and all channels; ``None`` where it is nearly everything."""
    lead = len(shape) - dims
    found = Region(tuple(shape), (*region.axes[: lead - 1], range(shape[lead - 1]), *axes))
    share = 1.0
    for axis, size in zip(axes, shape[lead:], strict=True):
        share *= len(axis) / max(size, 1)
    return None if share > _WORTH else found


def _boxed_input(region: Region, dims: int) -> Region:
    """All channels, and along each spatial dimension everything from the first position to the last."""
    lead = len(region.shape) - dims
    return Region(
        region.shape,
        (*region.axes[: lead - 1], range(region.shape[lead - 1]), *(hull(a) for a in region.axes[lead:])),
    )


def convolution(call: Call, weight: Tensor, rest: Sequence[Any]) -> Derived:
    """Convolution of the tangents with constant weights; ``rest`` is what follows the bias in ``aten.convolution``."""
    stride, padding, dilation, transposed, _, groups = rest
    dims = weight.ndim - 2
    region, shape = call.region, tuple(call.out.shape)
    spread = [_spread(v, dims) for v in (stride, padding, dilation)]
    whole = Derived(
        _batched(lambda t: aten.convolution(t, weight, None, *rest)),
        takes=(Region.whole(region.shape),),
    )
    if region.is_whole or len(region.shape) != weight.ndim:
        return whole
    given = _boxed_input(region, dims)
    axes = given.axes[-dims:]
    kernel = weight.shape[2:]
    if transposed:
        return _transposed_convolution(call, weight, spread, groups, given) or whole
    seen = [_reached(a, kernel[d], spread[0][d], spread[1][d], spread[2][d], shape[2 + d]) for d, a in enumerate(axes)]
    gives = _box(given, shape, dims, seen)
    if gives is None or not all(seen):
        return whole
    both: list[int] = []
    pads: list[int] = []
    for d, (axis, window) in enumerate(zip(axes, seen, strict=True)):
        assert isinstance(axis, range)
        before = axis.start - (window.start * spread[0][d] - spread[1][d])
        after = (window.stop - 1) * spread[0][d] - spread[1][d] + (kernel[d] - 1) * spread[2][d] + 1 - axis.stop
        same = max(min(before, after), 0)
        both.append(same)
        pads[:0] = [before - same, after - same]

    def apply(t: Tensor) -> Tensor:
        if any(pads):
            t = torch.constant_pad_nd(t, pads, 0.0)
        out: Tensor = aten.convolution(t, weight, None, spread[0], both, spread[2], False, [0] * dims, groups)
        return out

    return Derived(_batched(apply), gives, (given,))


def _transposed_convolution(
    call: Call, weight: Tensor, spread: Sequence[Sequence[int]], groups: int, given: Region
) -> Derived | None:
    """Each position reaches a box of the output; what lies outside of the output is cut off."""
    dims, shape = weight.ndim - 2, tuple(call.out.shape)
    stride, padding, dilation = spread
    axes: list[range] = []
    pads: list[int] = []
    for d, axis in enumerate(given.axes[-dims:]):
        assert isinstance(axis, range)
        start = axis.start * stride[d] - padding[d]
        stop = (axis.stop - 1) * stride[d] - padding[d] + (weight.shape[2 + d] - 1) * dilation[d] + 1
        inside = range(max(start, 0), min(stop, shape[2 + d]))
        if not inside:
            return None
        axes.append(inside)
        pads[:0] = [start - inside.start, inside.stop - stop]
    gives = _box(given, shape, dims, axes)
    if gives is None:
        return None

    def apply(t: Tensor) -> Tensor:
        none = [0] * dims
        out: Tensor = aten.convolution(t, weight, None, stride, none, dilation, True, none, groups)
        return torch.constant_pad_nd(out, pads, 0.0) if any(pads) else out

    return Derived(_batched(apply), gives, (given,))


def _convolution(call: Call) -> Derived:
    return convolution(call, call.args[1], call.args[3:])


# ---- normalisations and softmax --------------------------------------------------------------------------------------


def _batch_norm(call: Call) -> Derived | None:
    if call.node.target is aten._native_batch_norm_legit_no_training.default:
        x, weight, _, mean, variance, _, eps = call.args
        training = False
    else:
        x, weight, _, mean, variance, training, _, eps = call.args[:8]
    if training or mean is None or variance is None:
        return None
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    scale = scale.view(1, -1, *(1,) * (x.ndim - 2))
    scale = call.region.cut(scale)[None]
    rest = [None] * (len(call.out) - 1)

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        return [t[0].mul_(scale) if reuse[0] else t[0] * scale, *rest]

    return Derived(push, [call.region, *rest])


def _layer_norm(call: Call) -> Derived | None:
    x, shape, weight = call.args[:3]
    _, mean, rstd = call.out
    if len(shape) != 1:
        return None
    region = call.region.widened(-1)
    x, mean, rstd = (region.cut(v) for v in (x, mean, rstd))
    normalised = (x - mean) * rstd
    gain = rstd if weight is None else rstd * weight
    by_rows = _by_rows(normalised, gain) if x.is_cuda else None

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        if by_rows is not None and t[0].is_contiguous():
            return [by_rows(t[0], reuse[0]), None, None]
        along = (t[0] * normalised).mean(-1, keepdim=True)
        centred = t[0].sub_(t[0].mean(-1, keepdim=True)) if reuse[0] else t[0] - t[0].mean(-1, keepdim=True)
        return [centred.addcmul_(along, normalised, value=-1).mul_(gain), None, None]

    return Derived(push, [region, None, None], (region,))


def _by_rows(normalised: Tensor, gain: Tensor) -> Callable[[Tensor, bool], Tensor]:
    """gain · (t − mean t − n · mean(t · n)) of every row n, by two thin products: t is passed over half as often.

    The means are t·[n, 1]/k; what they take off is a product with [n, 1] · gain.
    """
    width = normalised.shape[-1]
    unit = normalised.reshape(-1, width)
    scale = gain.expand_as(normalised).reshape(-1, width)
    means = torch.stack([unit, torch.ones_like(unit)], 2) / width
    taken = torch.stack([unit * scale, scale], 1)

    def push(t: Tensor, reuse: bool) -> Tensor:
        flat = t.view(len(t), len(unit), width).transpose(0, 1)
        along = torch.bmm(flat, means)
        out = t.mul_(gain) if reuse else t * gain
        out.view(len(t), len(unit), width).transpose(0, 1).baddbmm_(along, taken, alpha=-1)
        return out

    return push


def _group_norm(call: Call) -> Derived | None:
    x, weight, groups = call.args[0], call.args[1], call.args[6]
    _, mean, rstd = call.out
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

    whole = Region.whole(x.shape)
    return Derived(push, [whole, None, None], (whole,))


def _softmax(call: Call) -> Derived:
    dim = shifted(call.args[1], call.out.ndim)
    region = call.region.widened(call.args[1])
    out = region.cut(call.out)

    def push(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        weighted = t[0].mul_(out) if reuse[0] else t[0] * out
        return weighted.addcmul_(weighted.sum(dim, keepdim=True), out, value=-1)

    return Derived(push, region, (region,))


# ---- pools -----------------------------------------------------------------------------------------------------------


def _max_pool(call: Call) -> Derived:
    indices = call.out[1]
    given_to = (*call.args[1:5], *((), 0, 1)[len(call.args[1:5]) - 1 :])
    kernel, stride, padding, dilation = (_spread(v, 2) for v in given_to)
    stride = stride or kernel
    region, shape = call.region, tuple(indices.shape)
    axes = [hull(a) for a in region.axes[-2:]]
    seen = [_reached(a, kernel[d], stride[d], padding[d], dilation[d], shape[d - 2]) for d, a in enumerate(axes)]
    share = (len(seen[0]) * len(seen[1])) / max(shape[-1] * shape[-2], 1)
    if region.is_whole or share > _WORTH or not all(seen):
        flat = indices.flatten(-2)

        def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
            if t[0] is None:
                return None
            chosen = t[0].flatten(-2).gather(-1, flat.expand(t[0].shape[0], *flat.shape))
            return [chosen.unflatten(-1, indices.shape[-2:]), None]

        return Derived(push, [Region.whole(shape), None], (Region.whole(region.shape),))
    given = Region(region.shape, (*region.axes[:-2], *axes))
    gives = Region(shape, (*region.axes[:-2], *seen))
    near = gives.cut(indices)
    width = region.shape[-1]
    row, column = near.div(width, rounding_mode="floor") - axes[0].start, near % width - axes[1].start
    inside = (row >= 0) & (row < len(axes[0])) & (column >= 0) & (column < len(axes[1]))
    place = torch.where(inside, row * len(axes[1]) + column, torch.zeros_like(row)).flatten(-2)
    kept = inside.to(call.args[0].dtype)

    def push_inside(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        if t[0] is None:
            return None
        chosen = t[0].flatten(-2).gather(-1, place.expand(t[0].shape[0], *place.shape))
        return [chosen.unflatten(-1, near.shape[-2:]).mul_(kept), None]

    return Derived(push_inside, [gives, None], (given,))


def _average_pool(call: Call) -> Derived:
    """Windows that lie inside the map are the same on a part of it; where others see the patch, the whole is taken."""
    op, args = aten.avg_pool2d.default, call.args
    region, shape = call.region, tuple(call.out.shape)
    whole = Derived(_batched(lambda t: op(t, *args[1:], **call.kwargs)), takes=(Region.whole(region.shape),))
    if region.is_whole or len(region.shape) != 4:
        return whole
    kernel = _spread(args[1], 2)
    stride = _spread(args[2], 2) if len(args) > 2 and args[2] else kernel
    padding = _spread(args[3], 2) if len(args) > 3 else [0, 0]
    divisor = args[6] if len(args) > 6 else None
    seen = [_reached(hull(a), kernel[d], stride[d], padding[d], 1, shape[2 + d]) for d, a in enumerate(region.axes[2:])]
    needed = []
    for d, window in enumerate(seen):
        start = window.start * stride[d] - padding[d]
        stop = (window.stop - 1) * stride[d] - padding[d] + kernel[d]
        if not window or start < 0 or stop > region.shape[2 + d]:
            return whole
        needed.append(range(start, stop))
    if len(seen[0]) * len(seen[1]) > _WORTH * shape[2] * shape[3]:
        return whole
    given = Region(region.shape, (*region.axes[:2], *needed))
    gives = Region(shape, (*region.axes[:2], *seen))
    return Derived(_batched(lambda t: op(t, kernel, stride, 0, False, True, divisor)), gives, (given,))


def _adaptive_average_pool(call: Call) -> Derived:
    op, size = aten._adaptive_avg_pool2d.default, call.args[1]
    region, shape = call.region, tuple(call.out.shape)
    if shape[-2:] != (1, 1) or region.is_whole:
        whole = Region.whole(region.shape)
        return Derived(_batched(lambda t: op(t, size)), takes=(whole,))
    share = 1.0 / (region.shape[-1] * region.shape[-2])
    gives = Region(shape, (*region.axes[:-2], range(1), range(1)))

    def push(t: Sequence[Tangent], _: Sequence[bool]) -> Tangent:
        return None if t[0] is None else t[0].sum((-2, -1), keepdim=True) * share

    return Derived(push, gives)


def _shuffle(op: Any) -> Callable[[Call], Derived]:
    def derive(call: Call) -> Derived:
        return Derived(
            _batched(lambda t: op(t, *call.args[1:], **call.kwargs)), takes=(Region.whole(call.region.shape),)
        )

    return derive


def _rule(derive: Callable[[Call], Derived | None]) -> Rule:
    return Rule(first_alone(derive))


LAYERS: dict[Any, Rule] = {
    aten.convolution.default: _rule(_convolution),
    aten.native_batch_norm.default: _rule(_batch_norm),
    aten.cudnn_batch_norm.default: _rule(_batch_norm),
    aten._native_batch_norm_legit_no_training.default: _rule(_batch_norm),
    aten.native_layer_norm.default: _rule(_layer_norm),
    aten.native_group_norm.default: _rule(_group_norm),
    aten._softmax.default: _rule(_softmax),
    aten._safe_softmax.default: _rule(_softmax),
    aten.max_pool2d_with_indices.default: _rule(_max_pool),
    aten.avg_pool2d.default: _rule(_average_pool),
    aten._adaptive_avg_pool2d.default: _rule(_adaptive_average_pool),
    aten.pixel_unshuffle.default: _rule(_shuffle(aten.pixel_unshuffle.default)),
    aten.pixel_shuffle.default: _rule(_shuffle(aten.pixel_shuffle.default)),
}
