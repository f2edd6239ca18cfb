"""Soft ranks of a spectrum, each exact to its published definition.

Every function takes singular values σ (one-dimensional, any order, not negative) and returns a float64 number. A zero
spectrum has rank 0 in every measure that defines a dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankscope._base.errors import UsageError

__all__ = [
    "condition_number",
    "effective_rank",
    "nuclear_norm",
    "participation_ratio",
    "rankme",
    "srank",
    "stable_rank",
]

Sigma = NDArray[np.float64]


def effective_rank(sigma: Sigma) -> float:
    """exp of the Shannon entropy of p = σ/‖σ‖₁, with 0·log 0 = 0 (Roy and Vetterli, EUSIPCO 2007).

    >>> effective_rank(np.array([2.0, 2.0, 0.0]))
    2.0
    """
    top = sigma.max(initial=0.0)
    if top == 0:
        return 0.0
    shares = sigma / top  # the sum of the values themselves may overflow
    p = shares[sigma > 0] / shares.sum()
    p = p[p > 0]  # a ratio can underflow
    return float(np.exp(-(p * np.log(p)).sum()))


def stable_rank(sigma: Sigma) -> float:
    """‖A‖²_F / ‖A‖²₂ (Rudelson and Vershynin, J. ACM 2007).

    >>> stable_rank(np.array([2.0, 2.0, 0.0]))
    2.0
    """
    top = sigma.max(initial=0.0)
    return 0.0 if top == 0 else float(((sigma / top) ** 2).sum())


def participation_ratio(sigma: Sigma) -> float:
    """(Σλ)² / Σλ² over the eigenvalues λ = σ² of the Gram or covariance matrix (Gao et al., bioRxiv 214262, 2017).

    >>> participation_ratio(np.array([3.0, 3.0, 3.0, 0.0]))
    3.0
    """
    top = sigma.max(initial=0.0)
    if top == 0:
        return 0.0
    eigenvalues = (sigma / top) ** 2
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def rankme(sigma: Sigma, *, eps: float = 1e-7) -> float:
    """exp(−Σ p log p) with p = σ/‖σ‖₁ + eps, eps = 1e-7 (Garrido et al., ICML 2023, Eq. 1).

    It differs from the effective rank by ``eps`` alone, which is inside p, not only inside the logarithm.

    >>> round(rankme(np.array([1.0, 1.0])), 5)
    2.0
    """
    top = sigma.max(initial=0.0)
    if top == 0:
        return 0.0
    shares = sigma / top
    p = shares / shares.sum() + eps
    return float(np.exp(-(p * np.log(p)).sum()))


def srank(sigma: Sigma, delta: float = 0.01) -> int:
    """Least k with Σ_{i≤k} σ_i ≥ (1 − δ) Σ σ_i, δ = 0.01 by default (Kumar et al., ICLR 2021, §3).

    >>> srank(np.array([98.0, 1.5, 0.5]))
    2
    """
    if not 0 < delta < 1:
        raise UsageError(f"delta is {delta}; srank needs a share between 0 and 1")
    top = sigma.max(initial=0.0)
    if top == 0:
        return 0
    sums = np.cumsum(np.sort(sigma / top)[::-1])
    shares = sums / sums[-1]
    return min(int(np.searchsorted(shares, 1 - delta)) + 1, len(sigma))


def nuclear_norm(sigma: Sigma) -> float:
    """Σσ.

    >>> nuclear_norm(np.array([3.0, 1.0]))
    4.0
    """
    return float(sigma.sum())


def condition_number(sigma: Sigma) -> float:
    """σ_max/σ_min over all min(rows, columns) values; infinite for a singular matrix, NaN for a zero one.

    >>> condition_number(np.array([4.0, 2.0]))
    2.0
    """
    top, bottom = sigma.max(initial=0.0), sigma.min(initial=np.inf)
    if top == 0:
        return float("nan")
    return float("inf") if bottom == 0 else float(top / bottom)
