"""The largest singular value of a wide random product: by how much its mean lies below the law's edge.

Near the right edge x_max of a law with z(ψ) = E[x/(z − x)]⁻¹ (see ``rectangular``), z has a minimum at ψ*, so the
density falls like a square root: N eigenvalues have (N/π)·√(2/z″(ψ*))/x_max·√(x_max − x) of them per unit of x. On the
scale γ at which that is √(−ξ)/π with x = x_max + γ·ξ, the largest of N follows the Tracy–Widom law of real matrices
(Tracy and Widom 1996; Johnstone 2001), whose mean is −1.2065. With u = log ψ and z″ = z·(log z)_uu/ψ² at the minimum,

    γ/x_max = [N·ψ*·√(2/(log z)_uu)]^(−2/3).

The shift is taken in log x, where it stays finite however small N is.
"""

from __future__ import annotations

import math

__all__ = ["log_edge_shift"]

# mean of the Tracy–Widom law for real symmetric matrices (Bornemann 2010, table 10)
_MEAN = -1.2065335745820


def log_edge_shift(count: float, psi: float, curvature: float) -> float:
    """Mean of log(x_1/x_max) over random matrices, x_1 the largest of ``count`` squared singular values.

    Parameters
    ----------
    count : float
        N, the number of eigenvalues that the law is a distribution of, zeros among them.
    psi, curvature : float
        Where z(ψ) has its minimum, and the second derivative of log z by log ψ there.

    >>> round(log_edge_shift(1000, 1.0, 0.5), 5)  # one square matrix: −1.2065·(2n)^(−2/3)
    -0.0076
    """
    return _MEAN * (count * psi * math.sqrt(2 / curvature)) ** (-2 / 3)
