"""Convolutions, pools and norms over maps, and what turns maps into tokens and tokens into vectors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fuzzing.choices import Choices, Shape, piece
from fuzzing.plain_pieces import Do, seen_data

AREA = 64  # values of one map


@piece("convolution", 3, homogeneous=True, weight=4)
def convolution(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    channels, height, width = shape
    out = c.size(1, max(1, min(4, AREA // (height * width))))
    kernel = c.one([1, 3])
    if kernel == 3 and min(height, width) >= 4 and c.chance(0.4):
        layer = nn.Conv2d(channels, out + 1, 3, stride=2, padding=1)
        return layer, (out + 1, (height + 1) // 2, (width + 1) // 2)
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=c.chance(0.6)), (out, height, width)


@piece("depthwise convolution", 3, homogeneous=True, weight=0.7)
def depthwise(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    mode = c.one(["zeros", "reflect", "circular"])
    mode = "zeros" if min(shape[1:]) < 2 else mode  # one pixel has no reflection
    return nn.Conv2d(shape[0], shape[0], 3, padding=1, groups=shape[0], padding_mode=mode), shape


@piece("transposed convolution", 3, homogeneous=True, weight=0.4)
def transposed(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return nn.ConvTranspose2d(shape[0], shape[0], 3, padding=1), shape


@piece("pool", 3, homogeneous=True, weight=1.5)
def pool(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    channels, height, width = shape
    if min(height, width) < 2:
        return nn.Identity(), shape
    kind = c.one(["max", "average", "adaptive max", "adaptive average", "overlapping"])
    if kind == "max":
        return nn.MaxPool2d(2), (channels, height // 2, width // 2)
    if kind == "average":
        return nn.AvgPool2d(2), (channels, height // 2, width // 2)
    if kind == "overlapping":
        return nn.MaxPool2d(3, 1, 1), shape
    layer = nn.AdaptiveMaxPool2d(2) if kind == "adaptive max" else nn.AdaptiveAvgPool2d(2)
    return layer, (channels, 2, 2)


@piece("upsample", 3, homogeneous=True, weight=0.4)
def upsample(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    channels, height, width = shape
    if channels * height * width * 4 > AREA:
        return nn.Identity(), shape
    mode = c.one(["nearest", "bilinear"])
    return nn.Upsample(scale_factor=2, mode=mode), (channels, 2 * height, 2 * width)


@piece("group or instance norm", 3)
def group_norm(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    groups = [g for g in (1, 2, 3, 4) if shape[0] % g == 0 and int(torch.Size(shape).numel()) > g]
    if not groups:  # one number has no variance
        return nn.Identity(), shape
    options = [nn.GroupNorm(c.one(groups), shape[0], eps=1e-2)]
    if shape[1] * shape[2] > 1:
        options += [nn.InstanceNorm2d(shape[0], affine=True, eps=1e-2)]
        options += [seen_data(nn.InstanceNorm2d(shape[0], affine=True, track_running_stats=True))]
    return c.one(options), shape


@piece("batch norm, no statistics", 3, couples=True)
def batch_statistics(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    if shape[1] * shape[2] == 1:
        return nn.Identity(), shape
    return nn.BatchNorm2d(shape[0], track_running_stats=False, eps=1e-2), shape


@piece("squeeze and excitation", 3, weight=0.7)
def squeeze(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    a, b = nn.Conv2d(shape[0], 2, 1), nn.Conv2d(2, shape[0], 1)
    return Do(lambda h, a, b: h * torch.sigmoid(b(F.relu(a(h.mean((2, 3), keepdim=True))))), a, b), shape


def to_tokens(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Do(lambda h: h.flatten(2).transpose(1, 2)), (shape[1] * shape[2], shape[0])


def to_vector(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    """The end of maps and tokens: flattened, pooled, or one token of them."""
    if len(shape) == 3:
        if c.chance(0.6):
            return nn.Flatten(), (shape[0] * shape[1] * shape[2],)
        return Do(lambda h: h.mean((2, 3))), (shape[0],)
    kind = c.one(["flat", "mean", "first"])
    if kind == "flat":
        return nn.Flatten(), (shape[0] * shape[1],)
    return (Do(lambda h: h.mean(1)) if kind == "mean" else Do(lambda h: h[:, 0])), (shape[1],)
