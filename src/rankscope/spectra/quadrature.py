"""Bounds on a spectral measure from a Jacobi matrix: Golub's rule with a prescribed node, and what its weights bound.

A probe's measure μ puts the weight (q·v_i)² on every eigenvalue λ_i. m Lanczos steps give its moments up to order 2m as
a Jacobi matrix T (diagonal α, off-diagonal β) and a last β. The rule with m + 1 nodes of which one is x,

    T̃ = [[T, β_m e_m], [β_m e_mᵀ, x + d]],   d = β_m² [(T − x)⁻¹]_mm   (Golub, SIAM Review 1973),

has the same moments, so the weights of its nodes above x, without and with that of x itself, bound μ((x, ∞)) and
μ([x, ∞)) from below and above (the Chebyshev–Markov–Stieltjes inequalities). No smoothness is assumed.

The node x is found by its index: T has as many eigenvalues above x as T̃ has, since the two interlace, and the signs of
the pivots of T − x count them (Sylvester). The nearest node could be another one where eigenvalues cluster beside x.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gauss_rule", "interpolated_share", "share_above"]

Vector = NDArray[np.float64]
# The last diagonal entry runs to infinity where x is an eigenvalue of T. Beyond this multiple of ‖T‖ the rule of one
# step less is taken: eigenvalues of T̃ carry rounding errors relative to its norm.
_LARGEST = 1e4
_ROUNDING = 1e-10  # of sums of weights that add up to 1


def gauss_rule(alpha: Vector, beta: Vector) -> tuple[Vector, Vector]:
    """Nodes, descending, and weights of the Gauss rule of a Jacobi matrix with diagonal ``alpha``.

    ``beta`` has one entry less.

    >>> nodes, weights = gauss_rule(np.array([0.0, 0.0]), np.array([1.0]))
    >>> nodes.round(12), weights.round(12)
    (array([ 1., -1.]), array([0.5, 0.5]))
    """
    from scipy.linalg import eigh_tridiagonal  # slow to import, and ranks by a sweep need none of it

    if len(alpha) == 1:
        return alpha.copy(), np.ones(1)
    found, vectors = eigh_tridiagonal(alpha, beta)
    nodes, weights = np.asarray(found, np.float64)[::-1], np.asarray(vectors[0], np.float64)[::-1] ** 2
    return nodes.copy(), weights / weights.sum()


def _last_pivot(alpha: Vector, beta: Vector, x: float, tiny: float) -> tuple[float, int]:
    """The last pivot of T − x, which is 1/[(T − x)⁻¹]_mm, and how many pivots are positive."""
    pivot, above = 1.0, 0
    for k, diagonal in enumerate(alpha):
        pivot = diagonal - x - (beta[k - 1] ** 2 / pivot if k else 0.0)
        if abs(pivot) < tiny:
            pivot = -tiny
        above += pivot > 0
    return float(pivot), int(above)


def share_above(alpha: Vector, beta: Vector, x: float) -> tuple[float, float]:
    """Lower bound on μ((x, ∞)) and upper bound on μ([x, ∞)), for a measure μ of mass 1.

    Parameters
    ----------
    alpha, beta : numpy.ndarray
        float64, shape (m,). The last ``beta`` is the length of the last residual; 0 means that the Krylov space is
        invariant, and then both bounds are the measure's own.

    >>> share_above(np.array([1.0]), np.array([0.0]), 0.5)
    (1.0, 1.0)
    """
    size = float(np.abs(alpha).max() + 2 * np.abs(beta).max(initial=0.0))
    if size == 0.0 or beta[-1] == 0.0:
        nodes, weights = gauss_rule(alpha, beta[:-1])
        low, high = float(weights[nodes > x].sum()), float(weights[nodes >= x].sum())
        return low, high
    tiny = float(np.finfo(np.float64).eps) ** 2 * size
    for m in range(len(alpha), 0, -1):
        pivot, above = _last_pivot(alpha[:m], beta[: m - 1], x, tiny)
        shift = beta[m - 1] ** 2 / pivot
        if abs(shift) <= _LARGEST * size:
            _, weights = gauss_rule(np.append(alpha[:m], x + shift), beta[:m])
            low, high = float(weights[:above].sum()), float(weights[: above + 1].sum())
            return max(low - _ROUNDING, 0.0), min(high + _ROUNDING, 1.0)
    return 0.0, 1.0


def interpolated_share(alpha: Vector, beta: Vector, x: float) -> float:
    """μ([x, ∞)) between its bounds: the cumulative Gauss weights, half a weight at its node, linear in log λ."""
    low, high = share_above(alpha, beta, x)
    nodes, weights = gauss_rule(alpha, beta[:-1])
    kept = nodes > 0
    if x <= 0 or not kept.any():
        return high if x <= 0 else low
    centres = np.cumsum(weights) - weights / 2
    logs, shares = np.log(nodes[kept]), centres[kept]
    return float(np.clip(np.interp(-np.log(x), -logs, shares), low, high))
