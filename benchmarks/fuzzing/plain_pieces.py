"""Linear layers, activations, gates and norms over the last dimension: for vectors and for tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fuzzing.choices import Choices, Shape, piece

MOST = 12  # features


class Do(nn.Module):
    """A function as a module, as users write it with ``nn.Module`` classes of two lines."""

    def __init__(self, function, *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h, *self.parts)


@piece("linear", 1, 2, homogeneous=True, weight=4)
def linear(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    width = c.size(3, MOST if len(shape) == 1 else 6)
    return nn.Linear(shape[-1], width, bias=c.chance(0.7)), (*shape[:-1], width)


@piece("low rank", 1, 2, homogeneous=True, weight=0.7)
def low_rank(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    inner = c.size(1, max(1, shape[-1] // 2))
    return nn.Sequential(nn.Linear(shape[-1], inner, bias=False), nn.Linear(inner, shape[-1])), shape


@piece("dead rows", 1, 2, homogeneous=True, weight=0.4)
def dead_rows(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    layer = nn.Linear(shape[-1], shape[-1])
    with torch.no_grad():
        layer.weight[:: c.size(2, 3)] = 0
    return layer, shape


@piece("weight norm", 1, 2, weight=0.4)
def weight_norm(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    wrap = c.one([parametrizations.weight_norm, parametrizations.spectral_norm])
    return wrap(nn.Linear(shape[-1], shape[-1])), shape


@piece("relu", 1, 2, 3, homogeneous=True, weight=2)
def relu(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return nn.ReLU(), shape


@piece("kinked activation", 1, 2, 3, homogeneous=True, weight=1.5)
def kinked(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return c.one(
        [nn.LeakyReLU(0.2), nn.PReLU(), Do(lambda h: h.abs()), Do(lambda h: torch.where(h > 0, h, 0.3 * h)),
         Do(lambda h: torch.maximum(h, -0.5 * h))]
    ), shape  # fmt: skip


@piece("bounded activation", 1, 2, 3)
def bounded(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return c.one(
        [nn.Hardtanh(-0.7, 0.8), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softshrink(0.1),
         Do(lambda h: h.clamp(-1, 0.9)), Do(lambda h: torch.clamp(h, min=-0.4)), nn.Threshold(-0.1, -0.1)]
    ), shape  # fmt: skip


class ClampTensors(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("low", -0.5 - torch.rand(width))
        self.register_buffer("high", 0.5 + torch.rand(width))

    def forward(self, h: Tensor) -> Tensor:
        return torch.clamp(h, self.low, self.high)


@piece("clamp with tensors", 1, 2, weight=0.5)
def clamp_tensors(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return ClampTensors(shape[-1]), shape


@piece("prelu per feature", 1, 3, homogeneous=True, weight=0.5)
def prelu(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    layer = nn.PReLU(shape[0])
    nn.init.uniform_(layer.weight, 0.1, 0.6)
    return layer, shape


@piece("smooth activation", 1, 2, 3, weight=2)
def smooth(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    kinds = [nn.GELU, nn.SiLU, nn.Tanh, nn.Softplus, nn.ELU, nn.Mish, nn.Sigmoid, nn.Softsign, nn.SELU]
    return c.one(kinds)(), shape


@piece("softmax", 1, 2, weight=0.4)
def softmax(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return c.one([nn.Softmax(-1), nn.LogSoftmax(-1), Do(lambda h: h - h.logsumexp(-1, keepdim=True) / 2)]), shape


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight


@piece("layer norm", 1, 2, weight=1.5)
def layer_norm(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    width = shape[-1]
    return c.one([nn.LayerNorm(width, eps=1e-2), RMSNorm(width), Do(lambda h: F.normalize(h, dim=-1) + 0.1 * h)]), shape


def seen_data(norm: nn.Module) -> nn.Module:
    """Statistics and scales as after training."""
    with torch.no_grad():
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.is_floating_point():
                positive = name.endswith(("weight", "running_var"))
                tensor.copy_(torch.rand_like(tensor) + 0.5 if positive else 0.3 * torch.randn_like(tensor))
    return norm


@piece("batch norm, kept statistics", 1, 3)
def batch_norm(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    kind = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
    return seen_data(kind(shape[0])), shape


@piece("gate", 1, 2, weight=1.5)
def gate(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    width = shape[-1]
    kind = c.one(["sigmoid", "glu", "mix", "hard"])
    if kind == "sigmoid":
        return Do(lambda h, g: h * torch.sigmoid(g(h)), nn.Linear(width, width)), shape
    if kind == "glu":
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GLU(-1)), shape
    if kind == "mix":
        a, b = nn.Linear(width, width), nn.Linear(width, 1)
        return Do(lambda h, a, b: (p := torch.sigmoid(b(h))) * h + (1 - p) * torch.tanh(a(h)), a, b), shape
    return Do(lambda h, g: h * (g(h) > 0), nn.Linear(width, width)), shape


@piece("in place", 1, 2, 3, homogeneous=True, weight=1.2)
def in_place(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    def write(h: Tensor) -> Tensor:
        h = h * 1.5
        h[:, 0] = 0.5 * h[:, -1]
        return h

    def add(h: Tensor) -> Tensor:
        y = h * 0.5
        y += h
        y.mul_(0.7)
        return y

    def shortcut(h: Tensor) -> Tensor:
        return h + F.relu(h, inplace=True)  # the activation writes into what the shortcut carries

    def scatter(h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        out[:, ::2] = h[:, ::2]
        out[:, 1::2].copy_(2 * h[:, 1::2])
        return out

    chosen = c.one([nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True), *map(Do, (write, add, shortcut, scatter))])
    # what an in-place function overwrites must not be what the caller holds on to
    return nn.Sequential(Do(lambda h: h * 1.0), chosen), shape


@piece("detached part", 1, 2, 3, homogeneous=True)
def detached(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    def norm(h: Tensor) -> Tensor:
        return h / (h.detach().flatten(1).norm(dim=1).view(-1, *[1] * (h.ndim - 1)) + 1e-3 * h.detach().abs().max())

    def part(h: Tensor) -> Tensor:
        return 0.7 * h + 0.3 * h.detach()

    def frozen(h: Tensor) -> Tensor:
        with torch.no_grad():
            kept = h * 0.5
        return h + kept

    return c.one([Do(part), Do(frozen)]), shape


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x + x**3 / 10

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 + 0.3 * x**2)


@piece("own autograd function", 1, 2, 3, weight=0.3)
def own_function(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Do(lambda h: _Cube.apply(torch.tanh(h))), shape


@piece("straight through", 1, 2, 3, weight=0.4)
def straight_through(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Do(lambda h: h + (torch.round(h) - h).detach()), shape


@piece("other operators", 1, 2)
def operators(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Do(
        c.one(
            [
                lambda h: h.cumsum(-1),
                lambda h: h.sort(-1).values,
                lambda h: h.flip(-1) + h.roll(1, -1),
                lambda h: torch.fft.rfft(h).abs().sum(-1, keepdim=True) * 0.1 + h,
                lambda h: torch.sqrt(h * h + 0.1),
                lambda h: torch.where(h > 0, torch.sqrt(h.clamp(min=1e-3)), h),
                lambda h: torch.einsum("...i,...j->...i", h, h) / h.shape[-1],
                lambda h: torch.atan2(h, 1 + h.roll(1, -1) ** 2),
                lambda h: F.pad(h, (1, 1))[..., 2:] - h,
                lambda h: h.gather(-1, torch.argsort(h, -1, descending=True)),
                lambda h: torch.log1p(h.abs()) * h.sign(),
            ]
        )
    ), shape
