"""Tangent rules of layers with one differentiable argument: convolutions, normalisations, softmax, pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope.linear.moving_rules import Push, Tangent, shifted

__all__ = ["LAYERS", "convolution_push"]

aten = torch.ops.aten


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
    dim = shifted(args[1], out.ndim)

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


LAYERS: dict[Any, Callable[[Any, Any, Any], Push | None]] = {
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
