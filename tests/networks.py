"""Small networks of every kind, each with inputs, and the slow, obvious oracle that the fast code is held to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Convolution, BatchNorm, in-place ReLU, twice, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)  # called twice
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class PreActivation(nn.Module):
    """The in-place ReLU writes into the very tensor that the shortcut carries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.relu(x))


class ResidualCNN(nn.Module):
    def __init__(self, block: type[nn.Module] = Residual) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(block(4), block(4))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.pool(self.stem(x))))


class DenseCNN(nn.Module):
    """Every layer sees all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1)
        self.b = nn.Conv2d(5, 3, 3, padding=1)
        self.c = nn.Conv2d(8, 4, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, F.silu(self.a(x))], 1)
        y = torch.cat([y, F.silu(self.b(y))], 1)
        return self.pool(self.c(y))


class ConvZoo(nn.Module):
    """Depthwise, dilated, grouped and transposed convolution, upsampling, padding, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.grow = nn.Upsample(scale_factor=0.5, mode="bilinear", align_corners=False)
        self.last = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
        self.pool = nn.AdaptiveMaxPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.up(F.leaky_relu(self.dilated(self.depthwise(x)))))
        y = F.elu(self.grow(F.pad(self.shuffle(y), (1, 1, 1, 1))))
        return self.pool(self.last(y))


class NormZoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.group = nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.layer = nn.LayerNorm([4, 4])
        self.rms = nn.RMSNorm(4)
        self.last = nn.LayerNorm(4, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.group(self.conv(x)))
        y = torch.tanh(self.layer(F.silu(self.instance(y))))
        return self.last(torch.sigmoid(self.rms(y)) * y)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 6, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(1, 5, 6))
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1) + self.position
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y)[:, 0])


class MultiHead(nn.Module):
    """``nn.MultiheadAttention`` and an encoder layer, whose fast paths have no forward-mode formula."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x)
        return self.head(self.encoder(y).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Shared(nn.Module):
    """One layer called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return self.last(x)


class Branches(nn.Module):
    """A tuple output, einsum, and a module inside a branch that returns more than one tensor."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.a(x), {"other": self.b(x)}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.fork = self.Fork()
        self.same = nn.Identity()
        self.weight = nn.Parameter(torch.randn(3, 3, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, rest = self.fork(self.first(x))
        return self.same(torch.einsum("bi,bj,ijk->bk", a, rest["other"], self.weight)), x


class Halves(nn.Module):
    """``split`` returns both halves from one module; the network needs both."""

    class Split(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.chunk(2, -1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.split = self.Split()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(self.first(x))
        return self.last(a * torch.sigmoid(b))


class InPlaceInput(nn.Module):
    """Normalises its own input in place, as preprocessing inside a model does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return torch.tanh(self.layer(x))


class Spectral(nn.Module):
    """Multiplies in the Fourier domain: complex numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)
        self.weight = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.rfft(self.first(x)) * torch.view_as_complex(self.weight)
        return self.last(torch.fft.irfft(z, n=6))


class BackwardCube(torch.autograd.Function):
    """Without a ``jvp`` and without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class _CubeOnce(torch.autograd.Function):
    """Without a ``jvp``, and its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class ReverseCube(torch.autograd.Function):
    """Its backward under a rule for vmap, and no forward-mode formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class RightCube(ReverseCube):
    """A right operator, of which no rule can know that it is."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class _WrongCube(ReverseCube):
    """Its forward-mode formula is wrong."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * x**2 * tangent


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function.apply(self.first(x)))


@dataclass(frozen=True)
class Config:
    vocab_size: int = 11
    use_cache: bool = True


class Language(nn.Module):
    """Called as Hugging Face's models are: keyword arguments, ids through the model's own embedding."""

    config = Config()

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.block = Block(6)
        self.head = nn.Linear(6, 4)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
    ) -> dict[str, Tensor]:
        assert not use_cache
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None:
            x = x * attention_mask[..., None].to(x.dtype)
        return {"logits": self.head(self.block(x))}


class Masked(nn.Module):
    """A second tensor, different for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.layer(x * mask))


class Cumulative(nn.Module):
    """Each image of a batch changes the images after it, and none before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(torch.cumsum(self.first(x), 0)))


def settled(model: nn.Module, *shape: int) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics from noise and no parameter at its trivial value."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, tensor in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                noise = 0.3 * torch.randn(module.num_features, generator=generator)
                getattr(module, name).data.copy_(tensor + (noise.abs() if name == "running_var" else noise))
    return model.eval()


@dataclass(frozen=True)
class Case:
    """One network of the table, its input shape (without the batch dimension), and the method it must end up with."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    method: str = "linearised"
    inputs: Callable[[int], Any] | None = None

    def model(self) -> nn.Module:
        torch.manual_seed(1)
        return settled(self.make())

    def sample(self, count: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        generator = torch.Generator().manual_seed(2)
        if self.inputs is not None:
            return self.inputs(count)
        return torch.randn(count, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


def _ids(count: int) -> dict[str, Tensor]:
    ids = torch.arange(3 * count).reshape(count, 3) % 11
    mask = torch.ones(count, 3, dtype=torch.long)
    mask[0, 2] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def _masks(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(count, 6)
    for i in range(count):
        mask[i, 6 - (i % 5) :] = 0
    return {"x": torch.randn(count, 6, generator=generator), "mask": mask}


CASES: dict[str, Case] = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)), (8,)),
    "residual": Case(ResidualCNN, (2, 7, 7)),
    "preactivation": Case(lambda: ResidualCNN(PreActivation), (2, 7, 7)),
    "dense": Case(DenseCNN, (2, 4, 4)),
    "convolutions": Case(ConvZoo, (2, 4, 3)),
    "normalisations": Case(NormZoo, (2, 4, 4)),
    "vit": Case(SmallViT, (2, 8, 8)),
    "multihead": Case(MultiHead, (3, 6)),
    "lstm": Case(lambda: Recurrent(nn.LSTM), (3, 4), "vmap(jvp), plain kernels"),
    "gru": Case(lambda: Recurrent(nn.GRU), (3, 4), ""),
    "shared": Case(Shared, (6,)),
    "branches": Case(Branches, (6,)),
    "halves": Case(Halves, (6,)),
    "in-place input": Case(InPlaceInput, (6,)),
    "spectral": Case(Spectral, (6,)),
    "double backward": Case(lambda: Custom(BackwardCube), (6,), "double backward"),
    "reverse rows": Case(lambda: Custom(_CubeOnce), (6,), "reverse mode by rows"),
    "language": Case(Language, (3, 6), inputs=_ids),
    "masked": Case(Masked, (6,), inputs=_masks),
    "cumulative": Case(Cumulative, (6,)),
}


def wrong_derivative() -> nn.Module:
    return settled(Custom(_WrongCube))


def find_tensor(output: Any) -> Tensor:
    """The first floating-point tensor of a module's output."""
    return find_tensors(output)[0]


def find_tensors(output: Any) -> list[Tensor]:
    """Every floating-point tensor of a module's output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if output is None:
        return []
    return [t for member in (output.values() if isinstance(output, dict) else output) for t in find_tensors(member)]


def part_of(output: Any, path: str) -> Tensor:
    for step in path.split(".") if path else ():
        output = output[step] if isinstance(output, dict) else output[int(step)]
    return output


def call(model: nn.Module, kwargs: dict[str, Any], x: Tensor) -> Any:
    keyword = kwargs.get("_keyword")
    rest = {k: v for k, v in kwargs.items() if k != "_keyword"}
    return model(**{keyword: x}, **rest) if keyword else model(x, **rest)


def oracle(
    model: nn.Module, x: Tensor, name: str, index: int = 0, parts: tuple[str, ...] | None = None, **kwargs: Any
) -> Tensor:
    """The float64 Jacobian (rows × inputs) of one call of one module, one reverse pass per row. Slow and obvious.

    Index −1 is the network's own output. ``parts`` names tensors of several: ``("0", "1.other")``. ``_keyword`` names
    the argument that ``x`` is passed as; the rest goes to the model as it is.
    """
    model = copy.deepcopy(model).double().eval()
    rest = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in kwargs.items()}

    def sub_network(value: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def keep(out: Any) -> None:
            chosen = find_tensors(out) if parts is None else [part_of(out, path) for path in parts]
            seen.append(torch.cat([t.flatten() for t in chosen]).clone())

        module = model.get_submodule(name) if index >= 0 else nn.Identity()
        handle = module.register_forward_hook(lambda _, __, out: keep(out))
        try:
            before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            made = call(model, rest, value * 1)
            if index < 0:
                keep(made)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
            handle.remove()
        return seen[index]

    jacobian = torch.autograd.functional.jacobian(sub_network, x.double())
    return jacobian.reshape(jacobian.shape[0], -1)


class Ragged(nn.Module):
    """Any number of tokens, mixed and averaged; the mask is that of the width."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.fc = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        if mask is not None:
            hidden = hidden * mask
        out: Tensor = self.fc(hidden.mean(1))
        return out
