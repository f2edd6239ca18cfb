"""Random combinations of the columns: what looks for rows of zeros, and the certificate's probes.

They are the same for every image of one shape, so they are made once.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from rankscope.linear.other_precision import PROBES
from rankscope.slicing import Columns

__all__ = ["Combinations"]

_SUPPORT_PROBES = 2
_AMPLIFIED = 2.0**40  # a row of denormal numbers must not round to zero in the look for zero rows


class Combinations:
    """Of the columns at images of one shape, on one device and in one dtype."""

    def __init__(self, columns: Columns, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        self.columns, self.shape, self.device, self.dtype = columns, shape, device, dtype
        self.count = columns.count(shape)

    @cached_property
    def look(self) -> Tensor:
        """Directions (2, *shape) whose products are zero on a row of zeros and almost surely nowhere else."""
        return self._combine(self._random(0x5EED, _SUPPORT_PROBES) * _AMPLIFIED)

    @cached_property
    def weights(self) -> Tensor:
        """The certificate's weights (probes, K), float64."""
        return self._random(0xCE27, PROBES).to(self.device)

    @cached_property
    def probes(self) -> Tensor:
        """The directions (probes, *shape) that belong to ``weights``."""
        return self._combine(self.weights)

    def _random(self, seed: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.count, generator=generator, dtype=torch.float64)

    def _combine(self, weights: Tensor) -> Tensor:
        """Σ_j weights[q, j] · direction_j for every q."""
        weights = weights.to(self.device)
        flat = self.columns.coordinates(self.shape)
        out = torch.zeros(len(weights), math.prod(self.shape), dtype=weights.dtype, device=self.device)
        if flat is not None:
            out[:, flat.to(self.device)] = weights
        else:
            for start in range(0, self.count, 64):
                stop = min(start + 64, self.count)
                directions = self.columns.tangents(self.shape, start, stop, self.device, weights.dtype)
                out += weights[:, start:stop] @ directions.flatten(1)
        return out.view(len(weights), *self.shape).to(self.dtype)
