"""The standard set of components (paper, Fig. 3) and what each must do to the rank of a Jacobian.

An *exact* loss holds in real arithmetic: a direction along which the output does not move at all (Theorem 3). A
*numerical* loss is a direction whose singular value is not zero but lies below any usual threshold, such as the
direction that a normalisation layer shrinks by its ε over the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankscope._base.checks import shape_of
from rankscope._base.errors import UsageError, closest
from rankscope.probes._needs import check_shape

__all__ = ["Attention", "Component", "Expectation", "components_for", "standard_components"]

Count: TypeAlias = int | Callable[[Tensor, Tensor], int]
_EPS = 1e-5  # of every normalisation layer, torch's default for most of them


@dataclass(frozen=True)
class Expectation:
    """What theory says of a component's own Jacobian at a point; ``None`` where nothing exact is known.

    Attributes
    ----------
    exact : int, callable or None
        Rank in real arithmetic, almost surely; a callable takes the component's input and output at the point.
    numerical : int, callable or None
        Singular values well above the ε of normalisation layers; ``exact`` where no direction is shrunk by an ε.
    note : str
        Why.
    """

    exact: Count | None
    note: str
    numerical: Count | None = None

    def exact_rank(self, features: Tensor, output: Tensor) -> int | None:
        """The exact rank at a point with this input and output."""
        return self.exact(features, output) if callable(self.exact) else self.exact

    def numerical_rank(self, features: Tensor, output: Tensor) -> int | None:
        """The number of directions that are not lost to an ε."""
        chosen = self.exact if self.numerical is None else self.numerical
        return chosen(features, output) if callable(chosen) else chosen


@dataclass(frozen=True)
class Component:
    """A named module of the standard set; ``module`` is in the mode in which it is measured."""

    name: str
    label: str
    module: nn.Module
    expected: Expectation


class Attention(nn.Module):
    """Softmax self-attention over the H·W positions of C channels, without a skip connection.

    Query, key, value and output maps are C × C with entries N(0, 1/C), so that features of unit variance give logits
    of unit variance.

    >>> Attention(8, heads=2)(torch.zeros(1, 8, 2, 3)).shape
    torch.Size([1, 8, 2, 3])
    """

    def __init__(self, channels: int, *, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(mixed).transpose(1, 2).reshape(batch, channels, height, width)


class _FullyConnected(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).view_as(x)


def _randomise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights N(0, 1/fan-in), biases N(0, 0.01); normalisation layers: scale and variance U(0.5, 1.5)."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator))
                part.weight.mul_(part.weight[0].numel() ** -0.5)
            else:
                for name, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                    if name in ("weight", "running_var"):
                        value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            for name, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                if name in ("bias", "running_mean"):
                    value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return module


def _positive(features: Tensor, _: Tensor) -> int:
    return int((features > 0).sum())


def _kept(_: Tensor, output: Tensor) -> int:
    return int((output != 0).sum())


def standard_components(
    input_shape: Sequence[int] = (128, 8, 8), *, seed: int = 0, only: Iterable[str] | None = None
) -> dict[str, Component]:
    """The components of Fig. 3 and their kin, with random weights, for features of shape (C, H, W).

    Those that act on each value or on the flattened sample (fc, relu, gelu, silu, layernorm, rmsnorm and dropout) take
    features of any shape.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width, without the batch dimension. H and W must be even for maxpool and avgpool, which
        halve them, and C divisible by 4 for groupnorm, which takes groups of four channels.
    seed : int
        Of the weights; each component draws from its own stream, so one may be left out without changing the others.
    only : names, optional
        Build these alone (the fully connected one holds n² weights); default: all.

    Raises
    ------
    UsageError
        For a shape that a component of ``only`` cannot take (the message names those that can), and for an unknown
        name.

    Examples
    --------
    >>> parts = standard_components((8, 4, 4))
    >>> parts["layernorm"].expected.exact
    127
    """
    return components_for(shape_of(input_shape, "input_shape"), seed=seed, only=only, given=False)


def components_for(
    shape: tuple[int, ...], *, seed: int, only: Iterable[str] | None, given: bool
) -> dict[str, Component]:
    """As ``standard_components``; ``given`` says that ``shape`` is that of the caller's own ``inputs``."""
    # of a shape that is not (C, H, W) only components are built that look at none of the three
    channels, height, width = shape if len(shape) == 3 else (1, 1, 1)
    n, quarter, groups = math.prod(shape), math.prod(shape) // 4, channels // 4
    heads = next(h for h in range(max(1, channels // 32), 0, -1) if channels % h == 0)
    whole = not (height % 2 or width % 2)
    square = "a random square matrix is invertible almost surely; what is lost is small σ, not zero σ"
    two = "its mean exactly, its scale up to ε/(variance + ε)"
    known: list[tuple[str, str, Callable[[], nn.Module], Expectation]] = [
        ("conv3x3", "conv 3×3", lambda: nn.Conv2d(channels, channels, 3, padding=1), Expectation(n, square)),
        ("fc", "FC", lambda: _FullyConnected(n), Expectation(n, square)),
        ("relu", "ReLU", lambda: nn.ReLU(), Expectation(_positive, "loses exactly the units whose input is negative")),
        ("gelu", "GELU", lambda: nn.GELU(), Expectation(n, "its slope is zero at one single value (−0.752)")),
        ("silu", "SiLU", lambda: nn.SiLU(), Expectation(n, "its slope is zero at one single value (−1.278)")),
        ("maxpool", "max pool", lambda: nn.MaxPool2d(2), Expectation(quarter, "2×2: keeps one value in four")),
        ("avgpool", "avg pool", lambda: nn.AvgPool2d(2), Expectation(quarter, "2×2: keeps one direction in four")),
        (
            "batchnorm_train",
            "BN (train)",
            lambda: nn.BatchNorm2d(channels, eps=_EPS),
            # two samples of one value per channel keep neither mean nor scale above ε
            Expectation(
                n if height * width > 1 else None,
                "none with two samples or more in the batch: its mean and scale move with the others'",
            ),
        ),
        (
            "batchnorm_eval",
            "BN (eval)",
            lambda: nn.BatchNorm2d(channels, eps=_EPS).eval(),
            Expectation(n, "a diagonal map"),
        ),
        (
            "instancenorm",
            "InstanceNorm",
            lambda: nn.InstanceNorm2d(channels, eps=_EPS, affine=True),
            Expectation(n - channels, f"of each channel, {two}", n - 2 * channels),
        ),
        (
            "layernorm",
            "LayerNorm",
            lambda: nn.LayerNorm(shape, eps=_EPS),
            Expectation(n - 1, f"of each sample, {two}", n - 2),
        ),
        (
            "groupnorm",
            "GroupNorm",
            lambda: nn.GroupNorm(groups, channels, eps=_EPS),
            Expectation(n - groups, f"of each of {groups} groups, {two}", n - 2 * groups),
        ),
        (
            "rmsnorm",
            "RMSNorm",
            lambda: nn.RMSNorm(shape, eps=_EPS),
            Expectation(n, "of each sample, no mean, its scale up to ε/(mean square + ε)", n - 1),
        ),
        (
            "attention",
            "attention",
            lambda: Attention(channels, heads=heads),
            Expectation(None, f"softmax over {height * width} positions: no exact value is known"),
        ),
        (
            "dropout",
            "dropout",
            lambda: nn.Dropout(0.5).train(),
            Expectation(_kept, "p = 0.5: keeps the units of its mask"),
        ),
        (
            "upsample",
            "upsample",
            lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            Expectation(n, "bilinear ×2: four times the values, the same dimensions"),
        ),
        (
            "downsample",
            "downsample",
            lambda: nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            Expectation(n // 2, "3×3 convolution of stride 2, twice the channels: half the values")
            if whole
            else Expectation(None, "3×3 convolution of stride 2 over an odd height or width: no exact value is known"),
        ),
    ]
    wanted = [name for name, *_ in known] if only is None else list(only)
    for name in wanted:
        if name not in (k[0] for k in known):
            raise UsageError(_no_component(str(name), [k[0] for k in known]))
    check_shape(shape, wanted, [name for name, *_ in known], given=given)
    found = {}
    for number, (name, label, build, expected) in enumerate(known):
        if name in wanted:
            generator = torch.Generator().manual_seed((seed << 16) + number)
            with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from the caller's stream
                found[name] = Component(name, label, _randomise(build(), generator), expected)
    return {name: found[name] for name in wanted}


# What people call some of them
_ALSO = {"softmax": "attention", "linear": "fc", "swish": "silu", "conv": "conv3x3", "batchnorm": "batchnorm_eval"}


def _no_component(name: str, known: list[str]) -> str:
    meant = _ALSO.get(name.lower().replace("_", "").removesuffix("2d")) or closest(name, known)
    hint = f"did you mean {meant!r}? The" if meant else "the"
    return f"there is no standard component {name!r}; {hint} standard set is {', '.join(known)}"
