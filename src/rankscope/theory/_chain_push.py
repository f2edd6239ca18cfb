"""A random chain layer by layer: its Jacobian and its features, rescaled so that no depth over- or underflows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from rankscope._base.errors import DataError
from rankscope.theory._blocks import Block, Init, OutOfRangeError, sample_weights

__all__ = ["linear_states", "nonlinear_states"]


def linear_states(
    rng: np.random.Generator,
    shape: tuple[int, int],
    depth: int,
    init: Init,
    block: Block,
    samples: int,
    dtype: torch.dtype,
) -> Iterator[tuple[torch.Tensor, float, torch.Tensor]]:
    """(J, log of the scale taken out of it, factor F) per layer, where FFᵀ is the features' scatter matrix.

    Centred inputs X = Q·R with Q orthonormal stay Q·(R·Jᵀ) under linear layers, so the width × min(samples, inputs)
    matrix F = J·Rᵀ replaces the samples: exactly the same covariance for a fraction of the work.
    """
    width, columns = shape
    inputs = torch.from_numpy(rng.standard_normal((samples, columns)))
    triangle = torch.linalg.qr(inputs - inputs.mean(0), mode="r").R.T.to(dtype)
    factor = torch.zeros(width, triangle.shape[1], dtype=dtype)
    factor[:columns] = triangle
    jacobian, log_scale = torch.eye(width, columns, dtype=dtype), 0.0
    for layer in range(1, depth + 1):
        weights = sample_weights(init, width, rng, layer, dtype)
        jacobian, size = _rescaled(block.push(jacobian, weights), layer)
        factor, _ = _rescaled(block.push(factor, weights), layer)
        log_scale += size
        yield jacobian, log_scale, factor


def nonlinear_states(
    rng: np.random.Generator,
    shape: tuple[int, int],
    depth: int,
    init: Init,
    block: Block,
    samples: int,
    dtype: torch.dtype,
) -> Iterator[tuple[torch.Tensor, float, torch.Tensor]]:
    """The same with every sample pushed through; F is the transposed matrix of centred features."""
    width, columns = shape
    name = str(dtype).removeprefix("torch.")
    batch, point = torch.zeros(samples, width, dtype=dtype), torch.zeros(width, dtype=dtype)
    batch[:, :columns] = torch.from_numpy(rng.standard_normal((samples, columns)))
    point[:columns] = torch.from_numpy(rng.standard_normal(columns))
    jacobian, log_scale = torch.eye(width, columns, dtype=dtype), 0.0
    for layer in range(1, depth + 1):
        weights = sample_weights(init, width, rng, layer, dtype)
        try:
            jacobian, point, batch = block.step(jacobian, point, batch, weights)
        except OutOfRangeError as error:
            how, verb = ("overflow", "lower") if error.overflow else ("underflow", "raise")
            raise DataError(
                f"the features {how} {name} at layer {layer} (counted from 1); {verb} the init's scale, or take fewer "
                "layers"
            ) from None
        jacobian, size = _rescaled(jacobian, layer)
        log_scale += size
        if block.homogeneous:
            size = float(batch.abs().max())
            if size > 0:
                batch, point = batch / size, point / size
        if not torch.isfinite(batch).all():
            raise DataError(
                f"the features overflow {name} at layer {layer} (counted from 1); lower the init's scale, "
                "or take fewer layers"
            )
        yield jacobian, log_scale, (batch - batch.mean(0)).T


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
