"""Soft ranks of a spectrum, each exact to its published definition.

Every function takes singular values σ (one-dimensional, any order, not negative) and returns a float64 number. A zero
spectrum has rank 0 in every measure that defines a dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankscope._base.errors import UsageError

__all__ = [
    "alpha_req",
    "condition_number",
    "effective_rank",
    "nuclear_norm",
    "participation_ratio",
    "rankme",
    "srank",
    "stable_rank",
    "variance_dimension",
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


def variance_dimension(sigma: Sigma, share: float) -> int:
    """Least k whose largest k eigenvalues λ = σ² hold at least ``share`` of Σλ (Jolliffe 2002, §6.1.1).

    Sums of d terms are off by d·eps relative; a share that is met up to that counts as met.

    >>> variance_dimension(np.array([3.0, 1.0, 1.0]), 0.9)
    2
    """
    if not 0 < share <= 1:
        raise UsageError(f"share is {share}; give a share of the variance above 0 and at most 1")
    top = sigma.max(initial=0.0)
    if top == 0:
        return 0
    sums = np.cumsum(np.sort((sigma / top) ** 2)[::-1])
    rounding = len(sums) * np.finfo(np.float64).eps
    return min(int(np.searchsorted(sums / sums[-1], share * (1 - rounding))) + 1, len(sums))


def alpha_req(sigma: Sigma, *, first: int = 1, last: int | None = None, floor: float = 0.0) -> float:
    """α of λ_i ∝ i^(−α): minus the slope of log λ over log i by least squares (Agrawal et al., NeurIPS 2022).

    Eigenvalues λ = σ² from the ``first`` to the ``last`` (both counted from 1) that are above ``floor``·λ_1 count. NaN
    where fewer than two are left.

    >>> round(alpha_req(np.arange(1.0, 100.0) ** -0.75), 6)
    1.5
    """
    if first < 1 or (last is not None and last <= first):
        raise UsageError(f"first is {first} and last is {last}; give 1 ≤ first < last")
    top = sigma.max(initial=0.0)
    if top == 0:
        return float("nan")
    values = (np.sort(sigma / top)[::-1]) ** 2
    place = np.arange(1, len(values) + 1)
    kept = (place >= first) & (values > floor) & ((place <= last) if last is not None else True)
    if kept.sum() < 2:
        return float("nan")
    x, y = np.log(place[kept]), np.log(values[kept])
    x = x - x.mean()
    return float(-(x @ y) / (x @ x))
