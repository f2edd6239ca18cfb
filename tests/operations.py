"""One function for each operator that a traced network may have: of tensors (2, 3, 4), and of images (2, 4, 6, 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

G = torch.Generator().manual_seed(0)


def const(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


class Function:
    """Stands in for a ``Runner``: a function of one tensor with one or more outputs."""

    def __init__(self, function: Callable[[Tensor], Any], count: int) -> None:
        self.function, self.keys = function, [(str(i), 0) for i in range(count)]

    def outputs(self, sample: Any, x: Tensor) -> tuple[Tensor, ...]:
        out = self.function(x.clone())
        return out if isinstance(out, tuple) else (out,)


X3 = (2, 3, 4)
W = {
    name: const(*shape) for name, shape in {"4": (4,), "34": (3, 4), "234": X3, "45": (4, 5), "244": (2, 4, 4)}.items()
}
INDEX = torch.tensor([[0, 2], [1, 1]])

OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    # views and moves
    "view": lambda x: x.view(2, 12) * 2,
    "reshape of a permuted": lambda x: x.permute(2, 0, 1).reshape(8, 3),
    "permute, negative": lambda x: x.permute(-1, 0, -2),
    "transpose": lambda x: x.transpose(-1, 0),
    "t": lambda x: x[0].t(),
    "t of a vector": lambda x: x[0, 0].t() * 2,
    "unsqueeze": lambda x: x.unsqueeze(-1) + x.unsqueeze(-2),
    "unsqueeze in front": lambda x: x.unsqueeze(0).unsqueeze(2),
    "squeeze": lambda x: x[:1].squeeze() + x[:1].squeeze(0),
    "select": lambda x: x.select(-1, -1) + x.select(1, 1).sum(),
    "slice": lambda x: x[:, ::2] * x[:, 1:, 1:-1:2].sum(),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1) * const_like("expand", 2, 5, 4),
    "expand with new dimensions": lambda x: x.expand(3, 2, 3, 4),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
    "crop by a negative pad": lambda x: F.pad(x, (-1, 0)),
    "roll": lambda x: x.roll((1, -2), (1, 2)),
    "roll flat": lambda x: x.roll(5),
    "flip": lambda x: x.flip(1),
    "mean": lambda x: x.mean((0, -1)) + x.mean(),
    "mean keepdim": lambda x: x - x.mean(1, keepdim=True),
    "sum": lambda x: x.sum(-2) + x.sum() + x.sum((0, 1), keepdim=True),
    "sum of no dimension": lambda x: x.sum(()) * x,
    "sum of a number": lambda x: x.sum().sum() * x.mean().mean() * x,
    "sum in another dtype": lambda x: x.float().sum(-1, dtype=torch.float64) * x[..., 0],
    "clone": lambda x: x.clone().contiguous() * x,
    "zeros and ones": lambda x: x * torch.ones_like(x) + torch.zeros_like(x) * x,
    "unbind": lambda x: x.unbind(1)[2] * x.unbind(-1)[0].sum(),
    "split": lambda x: x.split(2, 1)[1] + x.split([1, 2], -2)[0],
    "chunk": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
    "stack": lambda x: torch.stack([x, x * 2], 1),
    "cat": lambda x: torch.cat([x, x * 2, x[:, :1]], -2),
    "cat with constants": lambda x: torch.cat([W["234"], x, W["234"][:, :1], x[:, :1]], 1),
    "cat of one twice": lambda x: torch.cat([x, x], -1),
    "index": lambda x: x[:, INDEX],
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 4, dtype=torch.long)),
    "in place on a slice": lambda x: in_place_slice(x),
    "copied into": lambda x: copied(x),
    # element-wise
    "add, alpha": lambda x: torch.add(x, x * x, alpha=-3),
    "add a constant": lambda x: torch.add(W["4"], x, alpha=2.5) + 3,
    "add, broadcast": lambda x: x[:, :1] + x[0] + W["34"],
    "sub, alpha": lambda x: torch.sub(W["34"], x, alpha=2),
    "sub, broadcast": lambda x: x[:, :, :1] - x[:1] * 2,
    "rsub": lambda x: 1 - x,
    "mul, broadcast": lambda x: x[:, :1] * x[0] * W["4"],
    "mul by itself": lambda x: x * x,
    "mul by a number and a mask": lambda x: x * 2.5 * (W["234"] > 0),
    "div": lambda x: x / W["34"] / 3,
    "div by a function": lambda x: W["34"] / (x * x + 1) + x / (x.abs() + 1),
    "div, rounded": lambda x: torch.div(x, 0.3, rounding_mode="floor") + x,
    "neg": lambda x: -x,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where, all of one": lambda x: torch.where(x > -100, x * 2, x * 3) + x,
    "where, broadcast": lambda x: torch.where(W["4"] > 0, x[:, :1], x),
    "masked_fill": lambda x: x.masked_fill(W["34"] > 0, -1.0) * 2,
    "maximum": lambda x: torch.maximum(x, W["34"]) + torch.minimum(x, x.flip(0)),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp_min(0.1),
    "pow": lambda x: (x * x + 1) ** 1.5 + x**2 + 2**x,
    "lerp and addcmul": lambda x: torch.lerp(x, W["234"], 0.3) + torch.addcmul(x, x * 2, W["34"], value=0.5),
    "activations": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.elu(x) + F.mish(x),
    "more activations": lambda x: F.relu(x) + F.hardswish(x) + F.relu6(x) + F.softplus(x) + F.leaky_relu(x, 0.2),
    "erf, exp, log, rsqrt": lambda x: torch.erf(x) + x.exp() + (x * x + 1).log() + (x * x + 1).rsqrt(),
    "glu and prelu": lambda x: F.glu(x, -1).sum() + F.prelu(x, W["34"][:, 0]),
    "sign and round": lambda x: x.sign() + x.round() + x,
    "comparison with itself": lambda x: (x > x.mean()).to(x.dtype) * x,
    "dtype changes": lambda x: x.float().double() * x,
    "complex": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(const_like("complex", 3, 2)), n=4),
    # softmax and normalisation
    "softmax, last": lambda x: x.softmax(-1) * W["234"],
    "softmax, middle": lambda x: x.softmax(1) * x,
    "softmax, first": lambda x: F.softmax(x * 2, 0),
    "log_softmax": lambda x: x.log_softmax(-1),
    "cumsum and topk": lambda x: x.cumsum(1) + x.topk(1, -1).values,
    "amax, var, norm": lambda x: x.amax(-1) + x.var(-1) + x.norm(dim=-1) + x.std(1).sum(),
    "layer norm": lambda x: F.layer_norm(x, (4,), W["4"], W["4"], 1e-3) * x,
    "layer norm, plain": lambda x: F.layer_norm(x * 2, (4,)),
    "layer norm over two": lambda x: F.layer_norm(x, (3, 4), W["34"]),
    "layer norm, weight from the input": lambda x: F.layer_norm(W["234"], (4,), x[0, 0]),
    "rms norm": lambda x: F.rms_norm(x, (4,), W["4"]),
    "batch norm": lambda x: F.batch_norm(x, W["34"][:, 0], W["34"][:, 1].exp(), W["34"][:, 2], W["34"][:, 3], eps=0.1),
    "batch norm, plain": lambda x: F.batch_norm(x * 2, W["34"][:, 0], W["34"][:, 1].exp()),
    "batch norm of the batch": lambda x: F.batch_norm(x, None, None, training=True) * W["234"],
    "group norm": lambda x: F.group_norm(x, 3, W["34"][:, 0], W["34"][:, 1]),
    "instance norm": lambda x: F.instance_norm(x * W["234"]),
    # matrices
    "linear": lambda x: F.linear(x, W["45"].T, W["45"][0]),
    "mm": lambda x: x[0] @ W["45"],
    "mm, from the right": lambda x: W["34"].T @ x[1],
    "mm, both": lambda x: x[0] @ x[1].T,
    "mm, itself": lambda x: (x[0] @ x[1].T) @ (x[0] @ x[1].T),
    "mm of one tensor": lambda x: square(x),
    "addmm, all": lambda x: torch.addmm(x[0] * 2, x[0][:, :3], x[1]),
    "addmm, scaled": lambda x: torch.addmm(x[0], x[0][:, :3], x[1], beta=0.5, alpha=2),
    "addmm, broadcast": lambda x: torch.addmm(x[0, 0, :3], x[0], x[1].T),
    "addmm, factors the same": lambda x: added_square(x),
    "addmm, bias only": lambda x: torch.addmm(x[0], W["34"][:, :3], W["34"]),
    "bmm": lambda x: torch.bmm(x, W["244"]),
    "bmm, from the right": lambda x: torch.bmm(W["244"][:, :2, :3], x),
    "bmm, both": lambda x: torch.bmm(x, x.transpose(1, 2)),
    "bmm, itself": lambda x: torch.bmm(x[..., :3], x[..., :3]),
    "bmm, many": lambda x: torch.bmm(x.repeat(10, 1, 1), const_like("many", 20, 4, 5)),
    "bmm, many, from the right": lambda x: torch.bmm(const_like("many right", 20, 2, 3), x.repeat(10, 1, 1)),
    "bmm, many, both": lambda x: torch.bmm(x.repeat(10, 1, 1), (x.repeat(10, 1, 1) * 2).transpose(1, 2)),
    "bmm, seventeen": lambda x: torch.bmm(x[:1].expand(17, -1, -1), const_like("17", 17, 4, 2)),
    "einsum": lambda x: torch.einsum("bij,bkj,jl->bikl", x, x, W["45"]),
    "matmul, vectors": lambda x: x @ W["4"] + (x[0, 0] @ x[0, 1]),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None] * 2, x[:, None].tanh()),
    # several outputs, one inside the other
    "an output that goes on": lambda x: ((y := x * 2), y.mul(3).relu(), y + 1),
    "an output twice": lambda x: ((y := x.sin()), y, y.view(2, 12)),
    "an output that is a view": lambda x: ((y := x.sin()).view(2, 12), y * 2, (y * 2).relu()),
    "the input itself": lambda x: (x.view(-1), x * 2),
    "used twice": lambda x: (lambda y: F.layer_norm(y, (4,)) + y.softmax(-1) * y)(x.tanh()),
    "a view outlives its base": lambda x: outlived(x),
    "parts of one tensor": lambda x: (lambda a, b, c: a.softmax(-1) * b + c.mul(2) + a)(*x.tanh().unbind(1)),
    "an expanded tangent": lambda x: (lambda y: y * W["234"] + y.softmax(-1))(x[:, :1].tanh().expand(-1, 3, -1)),
    "scaled, then added": lambda x: (x.tanh() * W["4"]) + (x.sin() * 2) - (x.cos() / 3),
    "a long chain": lambda x: ((((x * W["4"]).relu() - 0.1).tanh() * 3).softmax(1) / 7).view(2, 12).neg(),
}  # fmt: skip

_CONST: dict[str, Tensor] = {}


def const_like(name: str, *shape: int) -> Tensor:
    if name not in _CONST:
        _CONST[name] = torch.randn(*shape, generator=torch.Generator().manual_seed(len(_CONST)), dtype=torch.float64)
    return _CONST[name]


def in_place_slice(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1] *= x[:, 0]
    y[0].relu_()
    y += 1
    return y * x


def copied(x: Tensor) -> Tensor:
    y = torch.zeros(2, 6, 4, dtype=x.dtype)
    y = y + x.sum() * 0
    y[:, :3] = x
    y[:, 3:4] = x[:, :1].sin()
    y[:, 4] = 1.0
    return y


def outlived(x: Tensor) -> Tensor:
    y = x.tanh()
    view = y[:, 1:].transpose(1, 2)
    return F.layer_norm(y, (4,)).sum() + view


def square(x: Tensor) -> Tensor:
    y = x[0, :, :3].tanh()
    return y @ y


def added_square(x: Tensor) -> Tensor:
    y = x[0, :, :3].tanh()
    return torch.addmm(x[1, :, :3], y, y) + torch.addmm(y, y, x[1, :, :3])


W4 = {n: const(*s) for n, s in {"conv": (4, 2, 3, 3), "group": (4, 1, 3, 3), "up": (4, 2, 3, 3), "bias": (4,)}.items()}
IMAGES: dict[str, Callable[[Tensor], Any]] = {
    "convolution": lambda x: F.conv2d(torch.cat([x[:, :2], x[:, 2:]], 1)[:, :2], W4["conv"], W4["bias"], 2, 1, 1),
    "depthwise, dilated": lambda x: F.conv2d(x, W4["group"], W4["bias"], 1, 2, 2, 4),
    "transposed": lambda x: F.conv_transpose2d(x, W4["up"], None, 2, 1, 1),
    "weight from the input": lambda x: F.conv2d(const_like("w", 1, 2, 6, 5), x[:, :2, :3, :3]),
    "unbatched": lambda x: F.conv2d(x[0, :2], W4["conv"]),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1) * 2,
    "max pool, dilated": lambda x: F.max_pool2d(x, 2, 1, 0, 2),
    "max pool, unbatched": lambda x: F.max_pool2d(x[0], 2),
    "average pool": lambda x: F.avg_pool2d(x, 2, 1, 1, False, False),
    "average pool, ceiled": lambda x: F.avg_pool2d(x, 2, 2, 0, True),
    "average pool, unbatched": lambda x: F.avg_pool2d(x[0], 2),
    "adaptive pools": lambda x: F.adaptive_avg_pool2d(x, (3, 2)) + F.adaptive_max_pool2d(x, (3, 2)),
    "one mean": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) + 1,
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear") * 2,
    "nearest and bicubic": lambda x: F.interpolate(x, (7, 6)).sum() + F.interpolate(x, (3, 4), mode="bicubic"),
    "circular pad": lambda x: F.pad(x, (1, 1, 2, 0), mode="circular") * 2,
    "reflect pad": lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect"),
    "batch norm": lambda x: F.batch_norm(x.sin(), W4["bias"], W4["bias"].exp(), W4["bias"], None).relu(),
    "unfold": lambda x: F.unfold(x, 2),
    "windows": lambda x: x.view(2, 4, 3, 2, 5, 1).permute(0, 2, 4, 3, 5, 1).reshape(-1, 2, 4).roll(1, 1),
}  # fmt: skip
