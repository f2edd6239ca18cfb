"""Spectra of a chain's Jacobian and of its features' covariance, through float64 Gram matrices where those resolve."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from rankscope._base.dtypes import dtype_name
from rankscope.spectra import Spectrum, exponent_near, spectrum_of_gram, times_two_to

__all__ = ["SVD_RTOL", "covariance_spectrum", "jacobian_spectrum"]

# A float64 Gram matrix resolves σ/σ_1 down to about 1e-7 (measured: right to 1% at 1.6e-7), an SVD to 1e-13.
_GRAM_RTOL, SVD_RTOL = 1e-6, 1e-12


def jacobian_spectrum(jacobian: torch.Tensor, rtol: float) -> Spectrum:
    """Through the Gram matrix where that resolves the threshold, by SVD below. The product is taken as computed."""
    if rtol < _GRAM_RTOL:
        return Spectrum.of(jacobian)
    exponent = int(exponent_near(jacobian))
    values = times_two_to(jacobian, -exponent)
    gram = values.T @ values
    rows, columns = values.shape
    return spectrum_of_gram(
        gram,
        (rows, columns),
        dtype=dtype_name(jacobian.dtype),
        error_bound=0.0,
        eigenvalues=_eigenvalues(gram),
        exponent=exponent,
    )


def covariance_spectrum(factor: torch.Tensor, width: int, dtype: torch.dtype) -> Spectrum:
    """Eigenvalues of the covariance FFᵀ, up to a scale that no rank notices, as the Spectrum of that matrix."""
    values = factor.to(torch.float64)
    largest = float(values.abs().max())
    values = values / largest if largest > 0 else values  # else its squares may under- or overflow
    covariance = values @ values.T
    trace = float(torch.trace(covariance))
    covariance = covariance / trace if trace > 0 else covariance
    eigenvalues = _eigenvalues(covariance).clamp_min_(0).numpy()
    # forming and solving move each eigenvalue by at most about this much, beside a trace of 1
    error = 2.0**-52 * (math.sqrt(factor.shape[1]) * 8 + width)
    return Spectrum(eigenvalues, (width, width), dtype_name(dtype), error_bound=error if trace > 0 else 0.0)


def _eigenvalues(symmetric: torch.Tensor) -> torch.Tensor:
    """Ascending, on one thread: at these sizes the solver waits for memory, and two threads that share a machine took
    6.8 s for width 1000 where one takes 0.15 s."""
    with _threads().limit(limits=1, user_api="blas"):
        return torch.from_numpy(np.linalg.eigvalsh(symmetric.numpy()))


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()
