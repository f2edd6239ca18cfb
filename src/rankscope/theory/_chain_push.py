"""A random chain layer by layer: its Jacobian and its features, rescaled so that no depth over- or underflows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError
from rankscope.theory._blocks import Block, Init, OutOfRangeError, sample_weights

__all__ = ["ChainPush"]


State = tuple[torch.Tensor, float, torch.Tensor]


@dataclass(frozen=True)
class ChainPush:
    """The sizes and layers of a chain; ``shape`` is (width, inputs)."""

    shape: tuple[int, int]
    depth: int
    init: Init
    block: Block
    samples: int
    dtype: torch.dtype

    def states(self, rng: np.random.Generator) -> Iterator[State]:
        """(J, log of the scale taken out of it, factor F) per layer, where FFᵀ is the features' scatter matrix."""
        return self._linear(rng) if self.block.linear else self._nonlinear(rng)

    def _drawn(self, rng: np.random.Generator, count: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((count, self.shape[1])))

    def _layers(self, rng: np.random.Generator) -> Iterator[tuple[int, torch.Tensor]]:
        for layer in range(1, self.depth + 1):
            yield layer, sample_weights(self.init, self.shape[0], rng, layer, self.dtype)

    def _linear(self, rng: np.random.Generator) -> Iterator[State]:
        """Centred inputs X = Q·R with Q orthonormal stay Q·(R·Jᵀ) under linear layers, so the width × min(samples,
        inputs) matrix F = J·Rᵀ replaces the samples: exactly the same covariance for a fraction of the work.
        """
        width, columns = self.shape
        inputs = self._drawn(rng, self.samples)
        triangle = torch.linalg.qr(inputs - inputs.mean(0), mode="r").R.T.to(self.dtype)
        factor = torch.zeros(width, triangle.shape[1], dtype=self.dtype)
        factor[:columns] = triangle
        jacobian, log_scale = torch.eye(width, columns, dtype=self.dtype), 0.0
        for layer, weights in self._layers(rng):
            jacobian, size = _rescaled(self.block.push(jacobian, weights), layer)
            factor, _ = _rescaled(self.block.push(factor, weights), layer)
            log_scale += size
            yield jacobian, log_scale, factor

    def _nonlinear(self, rng: np.random.Generator) -> Iterator[State]:
        """With every sample pushed through; F is the transposed matrix of centred features."""
        width, columns = self.shape
        batch, point = torch.zeros(self.samples, width, dtype=self.dtype), torch.zeros(width, dtype=self.dtype)
        batch[:, :columns] = self._drawn(rng, self.samples)
        point[:columns] = self._drawn(rng, 1)[0]
        jacobian, log_scale = torch.eye(width, columns, dtype=self.dtype), 0.0
        for layer, weights in self._layers(rng):
            try:
                jacobian, point, batch = self.block.step(jacobian, point, batch, weights)
            except OutOfRangeError as error:
                raise self._beyond(layer, overflow=error.overflow) from None
            jacobian, size = _rescaled(jacobian, layer)
            log_scale += size
            if self.block.homogeneous:
                size = float(batch.abs().max())
                if size > 0:
                    batch, point = batch / size, point / size
            if not torch.isfinite(batch).all():
                raise self._beyond(layer, overflow=True)
            yield jacobian, log_scale, (batch - batch.mean(0)).T

    def _beyond(self, layer: int, *, overflow: bool) -> DataError:
        how, verb = ("overflow", "lower") if overflow else ("underflow", "raise")
        name = dtype_name(self.dtype)
        return DataError(
            f"the features {how} {name} at layer {layer} (counted from 1); {verb} the init's scale, or take fewer "
            "layers"
        )


def _rescaled(matrix: torch.Tensor, layer: int) -> tuple[torch.Tensor, float]:
    """The matrix at Frobenius norm 1 and the logarithm of the norm; a zero matrix stays as it is.

    By the largest entry first: squares of entries below 1e-162 would underflow, and those above 1e154 overflow.
    """
    largest = float(matrix.abs().max())
    if not math.isfinite(largest):
        raise DataError(f"the Jacobian overflows at layer {layer} (counted from 1); lower the init's scale")
    if largest == 0:
        return matrix, 0.0
    matrix = matrix / largest
    size = float(torch.linalg.vector_norm(matrix))
    return matrix / size, math.log(size) + math.log(largest)
