"""Ranks of many spectra of one shape at once, with their bounds: the one place where σ is compared with τ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope.spectra.tolerance import Tolerance

__all__ = ["Ranks", "count_ranks"]


@dataclass(frozen=True, eq=False)
class Ranks:
    """One entry a spectrum, as ``RankEstimate`` explains them; shape (spectra,)."""

    value: NDArray[np.int64]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    threshold: NDArray[np.float64]
    margin: NDArray[np.float64]
    certified: NDArray[np.bool_]


def count_ranks(
    sigma: NDArray[np.float64],
    shape: tuple[int, int],
    dtype: str,
    error_bound: NDArray[np.float64],
    square_error: NDArray[np.float64],
    tolerance: Tolerance,
) -> Ranks:
    """Numerical ranks of matrices of one shape.

    With ‖E‖₂ ≤ e, every σ, and σ₁ inside τ = rtol·σ₁, is known to ±e, so the exact matrix's rank lies between
    #{σ ≥ τ + (1 + rtol)e} and #{σ ≥ τ − (1 + rtol)e}. A zero matrix has rank 0.

    Parameters
    ----------
    sigma : numpy.ndarray
        float64, shape (spectra, min(shape)), each row descending.
    error_bound, square_error : numpy.ndarray
        float64, shape (spectra,), as in ``Spectrum``; NaN bounds are not certified.
    """
    torch_dtype = getattr(torch, dtype, torch.float32)
    rtol = tolerance.relative(shape, torch_dtype)
    top = sigma[:, 0] if sigma.shape[1] else np.zeros(len(sigma))
    tau = np.maximum(rtol * top, tolerance.atol or 0.0)
    kept = sigma > tau[:, None] if tolerance.strict else sigma >= tau[:, None]
    positive = sigma > 0
    value = (kept & positive).sum(axis=1)
    unit = np.where(top > 0, top, 1.0)  # in units of σ₁, so that no square overflows or vanishes
    certified = ~np.isnan(error_bound)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # an error of the Gram matrix moves σ₁ too, by at most square_error / σ₁ to first order
        slack = (1 + rtol) * error_bound + np.where(top > 0, rtol * square_error / unit, 0.0)
        squares, error = (sigma / unit[:, None]) ** 2, (square_error / unit / unit)[:, None]
        above = squares - error >= (((tau + slack) / unit) ** 2)[:, None]
        below = squares + error >= ((np.maximum(tau - slack, 0.0) / unit) ** 2)[:, None]
        distance = np.abs(sigma - tau[:, None]).min(axis=1, initial=np.inf)
        margin = np.where(tau > 0, distance / tau, np.inf)
    lower = np.minimum((above & positive).sum(axis=1), value)
    upper = np.maximum(below.sum(axis=1), value)
    upper = np.where((top == 0) & (error_bound == 0), 0, upper)
    return Ranks(
        value=value,
        lower=np.where(certified, lower, 0),
        upper=np.where(certified, upper, min(shape)),
        threshold=tau,
        margin=margin,
        certified=certified,
    )
