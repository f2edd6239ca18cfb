"""How much larger the largest eigenvalue may be than the largest Ritz value of some random starts."""

from __future__ import annotations

import math

__all__ = ["largest_eigenvalue_bound", "relative_gap"]


def relative_gap(size: int, steps: int, probes: int, failure: float) -> float:
    """ε with θ ≥ (1 − ε)λ₁, except with probability ``failure``, for the best of ``probes`` uniform starts.

    One start of m steps misses by more than ε with probability at most 1.648·√N·exp(−√ε·(2m − 1)), whatever the
    spectrum (Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 1992, Theorem 4.2), and the starts are independent.
    A result of 1 or more says nothing.

    >>> round(relative_gap(150_528, 200, 8, 1e-6), 6)
    0.000421
    """
    root = (math.log(1.648 * math.sqrt(size)) + math.log(1 / failure) / probes) / (2 * steps - 1)
    return root * root


def largest_eigenvalue_bound(
    ritz: float, *, size: int, steps: int, probes: int, failure: float, forms: float, invariant: bool
) -> float:
    """Upper bound on the largest eigenvalue of a positive semidefinite matrix A.

    Parameters
    ----------
    ritz : float
        Largest Ritz value of all probes.
    steps : int
        The least number of steps of a probe.
    forms : float
        The largest gᵀAg over the unscaled Gaussian probes g. It is at least λ₁ times the largest of as many squares of
        standard normal numbers, which bounds λ₁ where the steps are too few for the theorem.
    invariant : bool
        Whether every probe's Krylov space is invariant. It then holds every distinct eigenvalue.
    """
    from scipy.special import ndtri

    if invariant:
        return ritz
    gap = relative_gap(size, steps, probes, failure)
    if gap < 0.5:
        return ritz / (1 - gap)
    # P(z² < s) = failure^(1/probes) for a standard normal z
    root = -float(ndtri((1 - failure ** (1 / probes)) / 2))
    return max(forms / root**2, ritz) if root > 0 else math.inf
