"""The numerical rank that a single random matrix is expected to have."""

from __future__ import annotations

import math

import numpy as np

from rankscope._base.checks import count_of
from rankscope.spectra import ToleranceLike
from rankscope.theory.prediction import counts_nothing, relative_tolerance
from rankscope.theory.soft_edge import log_edge_shift

__all__ = ["marchenko_pastur_rank"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def marchenko_pastur_rank(rows: int, columns: int, tolerance: ToleranceLike = "paper") -> float:
    """Expected numerical rank of one rows × columns matrix with independent Gaussian entries of any scale.

    With r = min, m = max of the sides and c = r/m, the eigenvalues x of AAᵀ/m follow the density
    √((b − x)(x − a))/(2πcx) on a = (1 − √c)², b = (1 + √c)² (Marchenko and Pastur 1967); the rank is
    r·P(x ≥ rtol²·x_1), with x_1 below b by the mean of the Tracy–Widom law. Measured: within 0.5 of the mean over
    samples for sides of 5 to 4,000 and rtol from 0.05 to 0.9. With σ_1 at its limit it was up to 3.9 too low.

    Raises
    ------
    UsageError
        When a side is below one, or the tolerance is absolute.

    Examples
    --------
    >>> round(marchenko_pastur_rank(1000, 1000, "reference"), 1)
    986.2
    >>> marchenko_pastur_rank(4000, 1000)
    1000.0
    """
    rows, columns = count_of(rows, "rows", most=2**63 - 1), count_of(columns, "columns", most=2**63 - 1)
    rtol = relative_tolerance(tolerance, (rows, columns))
    small, large = min(rows, columns), max(rows, columns)
    root = math.sqrt(small / large)
    a, b = (1 - root) ** 2, (1 + root) ** 2
    if counts_nothing(tolerance, rtol):
        return 0.0
    if small == 1:
        return 1.0
    # the minimum of z(ψ) = (1 + ψ)(1 + cψ)/ψ lies at ψ = 1/√c, and log z has the second derivative 2√c/(1 + √c)² there
    threshold = rtol**2 * b * math.exp(log_edge_shift(small, 1 / root, 2 * root / (1 + root) ** 2))
    if threshold <= a:
        return float(small)
    if rtol >= 1:
        return 1.0
    # x = a + (b − a)·sin²θ makes the integrand smooth at both ends: density·dx = (b−a)²·sin²θ·cos²θ/(πcx)·dθ
    start = math.asin(math.sqrt((threshold - a) / (b - a)))
    half = (math.pi / 2 - start) / 2
    theta = start + half * (_NODES + 1)
    x = a + (b - a) * np.sin(theta) ** 2
    density = (b - a) ** 2 * np.sin(theta) ** 2 * np.cos(theta) ** 2 / (math.pi * root**2 * x)
    return max(1.0, small * half * float(_WEIGHTS @ density))
