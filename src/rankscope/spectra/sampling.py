"""How far the share of a few random probes lies from the share of the eigenvalues.

With Gaussian probes g_p, each weighted by ‖g_p‖², the pooled share of r probes in an eigenspace of dimension c is
χ²_{rc} / (χ²_{rc} + χ²_{r(N−c)}), whatever the basis: Beta(rc/2, r(N − c)/2), exactly. Inverting its distribution
function gives an interval for c that holds with the stated probability at every c. (A normal interval does not: at
c = 1 one made for a failure probability of 1e-6 fails at 2e-3.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["count_interval", "relative_standard_error"]


def count_interval(low: float, high: float, size: int, probes: int, failure: float) -> tuple[int, int]:
    """Bounds on how many of ``size`` eigenvalues are above, from a pooled share between ``low`` and ``high``.

    Each of the two bounds fails with probability at most ``failure``/2.

    >>> count_interval(0.5, 0.5, 1000, 8, 1e-6)
    (462, 538)
    """
    least = _first(lambda c: _at_least(c, low, size, probes) > failure / 2, size)
    most = size - _first(lambda c: _at_most(size - c, high, size, probes) > failure / 2, size)
    return least, most


def _at_least(count: int, share: float, size: int, probes: int) -> float:
    """Probability of a share of at least ``share`` where ``count`` eigenvalues are above."""
    from scipy.special import betaincc

    if share <= 0 or count == size:
        return 1.0
    return float(betaincc(probes * count / 2, probes * (size - count) / 2, share)) if count else 0.0


def _at_most(count: int, share: float, size: int, probes: int) -> float:
    from scipy.special import betainc

    if share >= 1 or count == 0:
        return 1.0
    return float(betainc(probes * count / 2, probes * (size - count) / 2, share)) if count < size else 0.0


def _first(holds: Callable[[int], bool], size: int) -> int:
    """The least whole number up to ``size`` at which a monotone condition holds; it holds at ``size``."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def relative_standard_error(count: float, size: int, probes: int) -> float:
    """Standard error of the share of ``probes`` probes, relative to a share of ``count`` of ``size``.

    >>> round(relative_standard_error(1, 150_528, 8), 3)
    0.5
    """
    if count <= 0:
        return math.nan
    return math.sqrt(2 * (size - min(count, size)) / (count * size * probes))
