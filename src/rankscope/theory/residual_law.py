"""Chains of residual layers I + t·G/√n at any depth, wide: how many singular values lie above a relative threshold.

J = I + t·G/√n has the law of QJQᵀ for every orthogonal Q. So JᵀJ is free of whatever came before it, and the squared
singular values x of L layers have an S-transform that is the L-th power of that of one. For one layer, a signal 1 plus
noise (Dozier and Silverstein 2007), t²m = s − 1 solves (s − 1)(1 − s²z) = t²s at the Stieltjes transform m of z; with
ψ(z) = E[x/(z − x)], so that z·m = −(1 + ψ), this is solved by

    z(ψ) = (1 + ψ)/ψ · w(ψ)^L,  w = ¼(D + 1 + t²)(D + 1 − t²),  D = √((1 + t²)² + 4t²ψ).                        (1)

Great t leaves w = t²(1 + ψ), the Fuss–Catalan law of a chain without the skip; ½ log w(−k/n) is the k-th Lyapunov
exponent of ``residual_exponents``, as it must be. The edge x_max is the minimum of (1) over ψ > 0. On the cut
ψ = r·e^{iθ}, 0 < θ < π, the arguments cancel, arg(1 + ψ) + L·arg w = θ, and x falls from x_max to the left edge, above
zero where t < 1, as θ goes from 0 to π. The distribution again needs no integral: with dψ = D·dD/2t²,
∫G dz = ∫(1 + ψ) dlog z = L·[(D² − 2D)/4t² + log(D + 1 + t²)] − log ψ, whose imaginary part gives

    π·P(x ≥ x(θ)) = θ − L·[r·sin θ − Im D/2t² + arg(D + 1 + t²)].                                                (2)
"""

from __future__ import annotations

import cmath
import math

from scipy.optimize import brentq

from rankscope._base.checks import count_of, number_of
from rankscope.spectra import ToleranceLike
from rankscope.theory.prediction import counts_nothing, predicted_rank, relative_tolerance
from rankscope.theory.soft_edge import log_edge_shift

__all__ = ["residual_chain_rank"]

_NEAREST = 1e-8  # least distance of θ from 0 and π
_GREAT, _SMALL = 1e7, 1e-5  # beyond these the identity, or the size of a single step, changes less than rounding does
_MANY = 1e4
_NO_SPREAD = 1e-18  # of L·t²: all σ within a share 4·√(L·t²) of one another


def residual_chain_rank(n: int, t: float, depth: int, tolerance: ToleranceLike = "paper") -> float:
    """Expected numerical rank of a chain of layers J = I + t·G/√n, entries of G independent N(0, 1).

    Parameters
    ----------
    n, depth : int
        Width and number of layers, at least 1 each.
    t : float
        Size of the branch; a layer h + W·h with entries of W of standard deviation s has t = s·√n.
    tolerance : Tolerance, str or float
        Threshold on σ/σ_1 for an n × n matrix.

    Returns
    -------
    float
        At least 1, since σ_1 counts unless rtol exceeds 1 (then 0), and at most n.

    Raises
    ------
    UsageError
        When ``n`` or ``depth`` is below one, ``t`` is not a finite positive number, or the tolerance is absolute.

    Examples
    --------
    >>> round(residual_chain_rank(200, 1.0, 20), 1)  # 139 in simulated chains, where the exponents alone say 156
    139.2
    >>> residual_chain_rank(200, 400**-0.5, 400)
    200.0
    """
    n, depth, t = count_of(n, "n", most=10**7), count_of(depth, "depth", most=2**63 - 1), number_of(t, "t", above=0)
    rtol = relative_tolerance(tolerance, (n, n))
    if counts_nothing(tolerance, rtol):
        return 0.0
    if rtol >= 1 or n == 1:
        return 1.0
    if rtol == 0:
        return float(n)
    if t > _GREAT:
        return predicted_rank(n, depth, rtol, law="tracy-widom").value
    if depth * t**2 < _NO_SPREAD:
        return float(n)
    # of many small steps only their number times t² matters; fewer than _MANY layers of the larger step are not many
    merged = depth * (t / _SMALL) ** 2
    law = _Law(_SMALL, merged) if t < _SMALL and merged > _MANY else _Law(t, depth)
    target = 2 * math.log(rtol) + law.log_edge + law.edge_shift(n)

    def above(log_angle: float) -> float:
        return law.log_position(math.exp(log_angle)) - target

    # δ = π − θ on a logarithmic scale: where t ≥ 1 the hard edge lies at δ = 0
    low, high = math.log(_NEAREST), math.log(math.pi - _NEAREST)
    if above(low) >= 0:
        return float(n)
    if above(high) <= 0:
        return 1.0
    angle = math.exp(brentq(above, low, high, xtol=1e-13, rtol=1e-13))
    return min(float(n), max(1.0, n * law.share_above(angle)))


class _Law:
    """Equations (1) and (2) by the angle δ = π − θ, so that ψ = −r·e^{−iδ}."""

    def __init__(self, t: float, depth: float) -> None:
        self.square, self.depth = t**2, depth
        self.edge = brentq(self._slope, -80.0, 80.0, xtol=1e-14, rtol=1e-14)
        self.log_edge = self._log_z(math.exp(self.edge)).real

    def edge_shift(self, n: int) -> float:
        """By how much the mean of log x_1 lies off ``log_edge`` for width n."""
        psi = math.exp(self.edge)
        root, first, second = (part.real for part in self._parts(psi))
        step = 2 * self.square * psi / root  # dD by d log ψ
        bend = step * (1 - step / root) * (1 / first + 1 / second) - step**2 * (1 / first**2 + 1 / second**2)
        return log_edge_shift(n, psi, self.depth * bend + psi / (1 + psi) ** 2)

    def _parts(self, psi: complex) -> tuple[complex, complex, complex]:
        """D and the two factors of 4w, D + 1 + t² and D + 1 − t², the second without cancellation."""
        root = cmath.sqrt((1 + self.square) ** 2 + 4 * self.square * psi)
        second = root + 1 - self.square if self.square <= 1 else 4 * self.square * (1 + psi) / (root + self.square - 1)
        return root, root + 1 + self.square, second

    def _excess(self, psi: complex, root: complex) -> complex:
        """D − 1 without cancellation."""
        return self.square * (2 + self.square + 4 * psi) / (root + 1)

    def _slope(self, log_psi: float) -> float:
        """ψ·d log z/dψ on the positive axis; it rises through 0 at the right edge."""
        psi = math.exp(log_psi)
        root, first, second = (part.real for part in self._parts(psi))
        return self.depth * 2 * self.square * psi / root * (1 / first + 1 / second) - 1 / (1 + psi)

    def _log_z(self, psi: complex) -> complex:
        root, first, second = self._parts(psi)
        if self.square <= 1:
            # w is close to 1 for small t, and its logarithm counts L times: from D − 1, which keeps its digits
            excess = self._excess(psi, root)
            log_w = _log1p((excess + self.square) / 2) + _log1p((excess - self.square) / 2)
        else:
            log_w = cmath.log(first) + cmath.log(second) - math.log(4)
        return cmath.log(1 + psi) - cmath.log(psi) + self.depth * log_w

    def _psi(self, angle: float) -> complex:
        """The ψ at which z is real."""
        direction = -cmath.exp(-1j * angle)

        def excess(log_r: float) -> float:
            return self._log_z(math.exp(log_r) * direction).imag

        low = high = self.edge  # r at θ = 0; it moves little with θ beside the whole range
        step = 0.1
        while excess(low) > 0:
            low, step = low - step, 2 * step
        step = 0.1
        while excess(high) < 0:
            high, step = high + step, 2 * step
        log_r = brentq(excess, low, high, xtol=1e-15, rtol=1e-15) if low < high else low
        return math.exp(log_r) * direction

    def log_position(self, angle: float) -> float:
        """log x(θ)."""
        return self._log_z(self._psi(angle)).real

    def share_above(self, angle: float) -> float:
        """P(x ≥ x(θ)) by equation (2), with Im D = Im D²/(2·Re D) so that small t loses no digits."""
        psi = self._psi(angle)
        root, first, _ = self._parts(psi)
        lost = psi.imag * self._excess(psi, root).real / root.real + cmath.phase(first)
        return (math.pi - angle - self.depth * lost) / math.pi


def _log1p(value: complex) -> complex:
    """log(1 + value), principal branch, without losing the digits of a small value."""
    a, b = value.real, value.imag
    return complex(math.log1p(a * (2 + a) + b**2) / 2, math.atan2(b, 1 + a))
