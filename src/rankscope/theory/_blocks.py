"""One block of the deep-chain experiment, h → h·[residual] + α·act(norm(W·h)), and its exact Jacobian at one point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from rankscope._base.checks import number_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, UsageError, nearest, parameter
from rankscope.theory._matrices import as_matrix

__all__ = [
    "ACTIVATIONS",
    "NORMALISATIONS",
    "Activation",
    "Block",
    "Init",
    "Normalisation",
    "OutOfRangeError",
    "init_std",
    "sample_weights",
]

Activation: TypeAlias = Literal["relu", "gelu", "tanh"]
Normalisation: TypeAlias = Literal["layernorm", "batchnorm"]
Init: TypeAlias = str | Callable[[np.random.Generator], Any]
ACTIVATIONS = ("gelu", "relu", "tanh")
NORMALISATIONS = ("batchnorm", "layernorm")
_INITS = ("normal(0.02)", "kaiming_normal", "xavier_normal")
_NORM_EPS = 1e-5  # torch's default in LayerNorm and BatchNorm


def init_std(init: str, width: int) -> float:
    """Standard deviation of a named initialisation of a width × width layer, as in ``torch.nn.init``.

    >>> init_std("kaiming_normal", 200)
    0.1
    """
    if init == "kaiming_normal":
        return math.sqrt(2.0 / width)
    if init == "xavier_normal":
        return math.sqrt(1.0 / width)
    if init.startswith("normal(") and init.endswith(")"):
        try:
            return number_of(float(init[len("normal(") : -1]), "the standard deviation of init", above=0)
        except UsageError:
            raise
        except ValueError:
            pass
    raise UsageError(
        f"unknown {parameter('init')} {init!r} (any normal(STD) will do, and in Python a function of rng); "
        f"{nearest(init, _INITS)}"
    )


def sample_weights(
    init: Init, width: int, rng: np.random.Generator, layer: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """The weights of one layer, checked when a caller's function made them, and refused where ``dtype`` loses them.

    >>> sample_weights("xavier_normal", 3, np.random.default_rng(0), 1).shape
    torch.Size([3, 3])
    """
    if isinstance(init, str):
        drawn = torch.from_numpy(rng.standard_normal((width, width)) * init_std(init, width))
    else:
        drawn = _returned(init, width, rng, layer)
    weights = drawn.to(dtype)
    largest = float(drawn.abs().max())
    if not least_size(dtype) <= largest <= float(torch.finfo(dtype).max) and largest > 0:
        name = dtype_name(dtype)
        raise DataError(
            f"the weights of layer {layer} (counted from 1) reach {largest:.1g}, which {name} cannot compute with; "
            "change the init's scale"
        )
    return weights


def least_size(dtype: torch.dtype) -> float:
    """The largest entry that a tensor may have without its smaller digits falling below the dtype's normal numbers.

    >>> least_size(torch.float64)
    1.0020841800044864e-292
    """
    return float(torch.finfo(dtype).tiny / torch.finfo(dtype).eps)


def _returned(
    init: Callable[[np.random.Generator], Any], width: int, rng: np.random.Generator, layer: int
) -> torch.Tensor:
    weights = as_matrix(init(rng), f"what init returned for layer {layer} (counted from 1)")
    if weights.shape != (width, width):
        raise DataError(
            f"init returned shape {weights.shape} for layer {layer} (counted from 1), but the width is {width}; "
            f"return {width} × {width} or pass width={weights.shape[0]}"
        )
    return torch.from_numpy(weights)


class OutOfRangeError(Exception):
    """Features that the dtype cannot hold: they ``overflow``, or their products fall below its normal numbers."""

    def __init__(self, *, overflow: bool) -> None:
        super().__init__()
        self.overflow = overflow


@dataclass(frozen=True)
class Block:
    """What every layer does around its weights.

    Attributes
    ----------
    activation, normalisation : str or None
    residual : float or None
        α of h + α·act(norm(W·h)); None for no skip connection.
    """

    activation: Activation | None
    normalisation: Normalisation | None
    residual: float | None

    @property
    def linear(self) -> bool:
        """Whether the block is one matrix for all inputs."""
        return self.activation is None and self.normalisation is None

    @property
    def homogeneous(self) -> bool:
        """Whether block(c·h) = c·block(h) for c > 0, so that features may be rescaled between layers."""
        return self.activation in (None, "relu") and self.normalisation is None

    def push(self, jacobian: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The linear block applied to the columns of a matrix."""
        branch = weights @ jacobian
        return branch if self.residual is None else jacobian + self.residual * branch

    def step(
        self, jacobian: torch.Tensor, point: torch.Tensor, batch: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Jacobian at the point, the point itself, and a batch of samples (rows), each one block further."""
        y, ys, branch = weights @ point, batch @ weights.T, weights @ jacobian
        self._check(batch, weights, ys)
        if self.normalisation == "layernorm":
            ys = torch.nn.functional.layer_norm(ys, ys.shape[1:], eps=_NORM_EPS)
            centred = y - y.mean()
            scale = torch.rsqrt(centred.square().mean() + _NORM_EPS)
            y = centred * scale
            # d norm(y)/dy = scale·(I − 11ᵀ/n − zzᵀ/n), z the normalised vector
            branch = scale * (branch - branch.mean(0) - torch.outer(y, y @ branch) / len(y))
        elif self.normalisation == "batchnorm":
            mean, scale = ys.mean(0), torch.rsqrt(ys.var(0, correction=0) + _NORM_EPS)
            y, ys, branch = (y - mean) * scale, (ys - mean) * scale, scale[:, None] * branch
        y, slope = _activate(self.activation, y)
        ys, _ = _activate(self.activation, ys, slope=False)
        if slope is not None:
            branch = slope[:, None] * branch
        if self.residual is None:
            return branch, y, ys
        return jacobian + self.residual * branch, point + self.residual * y, batch + self.residual * ys

    def _check(self, batch: torch.Tensor, weights: torch.Tensor, product: torch.Tensor) -> None:
        """Refuse pre-activations that the dtype cannot hold, or whose squares a normalisation cannot form."""
        largest, limits = float(product.abs().max()), torch.finfo(product.dtype)
        top = limits.max if self.normalisation is None else math.sqrt(limits.max / product.shape[1])
        if not largest <= top:
            raise OutOfRangeError(overflow=True)
        # beside a skip a small branch may vanish; a zero is one unless no factor is
        if self.residual is not None or largest >= least_size(product.dtype):
            return
        a, b = (float(factor.abs().max()) for factor in (batch, weights))
        if a > 0 and b > 0 and (largest > 0 or bool(((batch / a) @ (weights / b).T).any())):
            raise OutOfRangeError(overflow=False)


def _activate(
    activation: Activation | None, x: torch.Tensor, *, slope: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The activation's value and, if asked for, its derivative."""
    if activation == "relu":
        return x.clamp_min(0), (x > 0).to(x.dtype) if slope else None
    if activation == "tanh":
        value = torch.tanh(x)
        return value, 1 - value.square() if slope else None
    if activation == "gelu":
        value = torch.nn.functional.gelu(x)
        if not slope:
            return value, None
        cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return value, cdf + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return x, None
