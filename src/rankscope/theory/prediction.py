"""How many singular values of a Gaussian chain lie above a relative threshold, by depth: closed forms, no sampling.

Laws for widths n and depths L of different proportion:

Fuss–Catalan (n → ∞ at fixed L). The squared singular values x of the product of L square matrices with entries of
variance 1/n lie where x(φ) = sin^{L+1}((L+1)φ) / (sin φ · sin^L(Lφ)), φ ∈ (0, π/(L+1)), falling from
x_max = (L+1)^{L+1}/L^L to 0 (Haagerup and Möller 2013; Forrester and Liu 2015). Their resolvent w = z·G(z) satisfies
z = w^{L+1}/(w − 1), so ∫G dz = ∫w·dz/z = L·w − log(w − 1), and on the cut w − 1 = sin φ/sin(Lφ)·e^{i(L+1)φ}. Taking
imaginary parts gives the distribution without an integral:

    P(x ≥ x(φ)) = [(L+1)φ − L·sin φ·sin((L+1)φ)/sin(Lφ)] / π.

Tracy–Widom (L ≤ n). The same count with σ_1, on which the threshold depends, at its mean for this n and not at x_max:
the edge in ``soft_edge`` has ψ* = 1/L and (log z)_uu = L/(L+1).

Lyapunov (L → ∞ at fixed n, Theorem 5): the whole number #{k : L·(λ_1 − λ_k) ≤ log 1/rtol}.

Lyapunov mean: log σ_k is Gaussian about L·λ_k, and the gap X_k = log σ_1 − log σ_k about L·(λ_1 − λ_k), with variance
L/4·[ψ′(n/2) + ψ′((n−k+1)/2)]. The expected count is 1 + Σ P(X_k ≤ log 1/rtol | X_k ≥ 0): Theorem 5 without its steps.

Between L = n and L = 16n no law is right: means with the weight log(L/n)/log 16 lead from Tracy–Widom to the Lyapunov
mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.special import digamma, ndtr, polygamma

from rankscope._base.checks import choice_of, count_of
from rankscope._base.errors import UsageError
from rankscope._base.records import Record
from rankscope.spectra import Tolerance, ToleranceLike, as_tolerance
from rankscope.theory.soft_edge import log_edge_shift
from rankscope.views.phrases import counted
from rankscope.views.theory_figure import plot_depths

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "CROSSOVER",
    "Law",
    "RankPrediction",
    "counts_nothing",
    "depth_to_rank",
    "predicted_rank",
    "relative_tolerance",
]

Law = Literal["fuss-catalan", "tracy-widom", "between", "lyapunov", "lyapunov-mean"]
AskedLaw: TypeAlias = Literal["auto", "fuss-catalan", "tracy-widom", "lyapunov", "lyapunov-mean"]
_LAWS = ("auto", "fuss-catalan", "tracy-widom", "lyapunov", "lyapunov-mean")
_SHALLOW = ("fuss-catalan", "tracy-widom")
# Measured: for n = 10, 50, 200 and rtol 1e-2, 1e-5, 1e-10 the Fuss–Catalan count was within 1.1 of the mean of
# simulated chains up to L = 4n, where both laws are equally far off; beyond, Theorem 5 is the closer one. At greater
# rtol it is further off: 2.0, or 9% of the count, at n = 200, L = 10, rtol 0.3.
CROSSOVER = 4
# "auto" leads from one law to the other over these depths, in widths. Measured for n = 4, 10, 30, L = n to 32n and rtol
# 0.1 to 1e-30: at L = n Tracy–Widom is within 0.3 of the mean of simulated chains, at 2n within 0.4, at 4n within 0.5;
# the Lyapunov mean lies up to 2.1 above at n, 0.5 at 4n, 0.2 at 16n.
_BLEND = (1, 16)


@dataclass(frozen=True, eq=False)
class RankPrediction(Record):
    """A predicted numerical rank and whether the law that gave it may be used there.

    Attributes
    ----------
    value : float
        Expected rank, not a whole number. At least 1, since σ_1 always counts, but 0 for an rtol above 1.
    n, depth : int
        Width and number of layers.
    rtol : float
        Threshold on σ/σ_1.
    tolerance : str
        Name of the tolerance that set ``rtol``.
    law : str
        ``"fuss-catalan"``, ``"tracy-widom"``, ``"lyapunov"`` (a whole number), ``"lyapunov-mean"`` (an expectation)
        or, for depths where ``"auto"`` leads from the second to the last, ``"between"``.
    depth_range : tuple
        Depths (first, last) for which this law may be used at this width; last is None when there is no end.
    in_range : bool
        Whether ``depth`` is in ``depth_range``.
    """

    value: float
    n: int
    depth: int
    rtol: float
    tolerance: str
    law: Law
    depth_range: tuple[int, int | None]
    in_range: bool

    derived: ClassVar[tuple[str, ...]] = ("rank", "laws")

    @property
    def rank(self) -> int:
        """``value`` rounded to the nearest whole number."""
        return math.floor(self.value + 0.5)

    @property
    def laws(self) -> dict[str, float]:
        """What each law says here, whatever its range."""
        return {name: _count(self.n, self.depth, self.rtol, name) for name in _LAWS[1:]}

    def __int__(self) -> int:
        return self.rank

    def table(self) -> pd.DataFrame:
        """One row: the prediction, what it is for, and what every law says."""
        import pandas as pd

        names = ("n", "depth", "rtol", "tolerance", "law", "value", "rank", "in_range")
        first, last = self.depth_range
        row = {name: getattr(self, name) for name in names} | {"first_depth": first, "last_depth": last}
        return pd.DataFrame([{**row, **self.laws}])

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """What every law predicts up to four times the depth, and this prediction as a point."""
        depths = np.unique(np.geomspace(1, 4 * self.depth, 40).round().astype(np.int64))
        laws = {name: np.array([_count(self.n, int(k), self.rtol, name) for k in depths]) for name in _LAWS[1:]}
        title = f"Gaussian layers of width {self.n:,}, tolerance: {self.tolerance}"
        return plot_depths(depths, laws, (self.depth, self.value), title=title, ax=ax)

    def __str__(self) -> str:
        first, last = self.depth_range
        span = f"{first:,} ≤ L ≤ {last:,}" if last is not None else f"L ≥ {first:,}"
        flag = "" if self.in_range else f"; OUTSIDE the law's range {span}"
        law: str = self.law
        if law == "between":
            ends = {name: f"{name} {value:,.1f}" for name, value in self.laws.items()}
            law = f"between {ends['tracy-widom']} and {ends['lyapunov-mean']}"
        return f"{self.value:,.1f} of {self.n:,} after {counted(self.depth, 'layer')} ({law}, {self.tolerance}{flag})"


def relative_tolerance(tolerance: ToleranceLike, shape: tuple[int, int]) -> float:
    """rtol of a tolerance for a matrix of this shape; a prediction has no scale, so an absolute threshold is refused.

    >>> relative_tolerance("paper", (1000, 1000))
    0.00011920928955078125
    """
    tol = as_tolerance(tolerance)
    if tol.atol:
        raise UsageError(f"the tolerance {tol.name} has an absolute part; a prediction needs rtol alone")
    return tol.relative(shape)


def counts_nothing(tolerance: ToleranceLike, rtol: float) -> bool:
    """Whether not even σ_1 passes: an rtol above 1, or of 1 where the comparison is strict.

    >>> counts_nothing(2.0, 2.0), counts_nothing(1.0, 1.0)
    (True, False)
    """
    return rtol > 1 or (rtol == 1 and as_tolerance(tolerance).strict)


def predicted_rank(n: int, depth: int, tolerance: ToleranceLike = "paper", *, law: AskedLaw = "auto") -> RankPrediction:
    """Numerical rank of a product of ``depth`` independent n × n Gaussian matrices. The scale of the entries cancels.

    Parameters
    ----------
    n, depth : int
        Width and number of layers, at least 1 each.
    tolerance : Tolerance, str or float
        Threshold on σ/σ_1 for an n × n matrix.
    law : str
        ``"fuss-catalan"`` (the limit n → ∞ at fixed depth), ``"tracy-widom"`` (the same with σ_1 at its mean for this
        n), ``"lyapunov"`` (Theorem 5's whole number, for depth ≥ 4n), ``"lyapunov-mean"`` (the expectation around it),
        or ``"auto"``: ``"tracy-widom"`` up to depth n, ``"lyapunov-mean"`` from 16n, and between the two a mean that
        leads from one to the other and never rises with depth. A law asked for outside its range still answers;
        ``in_range`` then is False.

    Notes
    -----
    ``"auto"`` is within 0.5 of the mean over simulated chains (n = 4 to 200, depth 1 to 32n, rtol 0.5 to 1e-30).
    ``"fuss-catalan"`` has σ_1 at its limit, which is too high: at n = 200, depth 10 and rtol 0.3 it is 2.0, or 9% of
    the count, too low.

    Raises
    ------
    UsageError
        When ``n`` or ``depth`` is below one, the law is unknown, or the tolerance is absolute.

    Examples
    --------
    >>> print(predicted_rank(1000, 50))
    250.2 of 1,000 after 50 layers (tracy-widom, paper)
    >>> predicted_rank(1000, 50, law="lyapunov").rank
    303
    """
    n, depth = count_of(n, "n", most=10**7), count_of(depth, "depth", most=2**63 - 1)
    choice_of(law, "law", _LAWS)
    rtol = relative_tolerance(tolerance, (n, n))
    chosen: Law
    depth_range: tuple[int, int | None]
    if law in _SHALLOW:
        chosen, depth_range = law, (1, CROSSOVER * n)  # type: ignore[assignment]
    elif law in ("lyapunov", "lyapunov-mean"):
        chosen, depth_range = law, (CROSSOVER * n, None)
    elif depth <= _BLEND[0] * n:
        chosen, depth_range = "tracy-widom", (1, _BLEND[0] * n)
    elif depth < _BLEND[1] * n:
        chosen, depth_range = "between", (_BLEND[0] * n, _BLEND[1] * n)
    else:
        chosen, depth_range = "lyapunov-mean", (_BLEND[1] * n, None)
    if counts_nothing(tolerance, rtol):
        value = 0.0
    else:
        value = _auto_count(n, depth, rtol) if law == "auto" else _count(n, depth, rtol, chosen)
        value = min(value, float(n))  # a sum of shares may end a rounding above it
    in_range = depth >= depth_range[0] and (depth_range[1] is None or depth <= depth_range[1])
    return RankPrediction(value, n, depth, rtol, as_tolerance(tolerance).name, chosen, depth_range, in_range)


def depth_to_rank(
    n: int,
    rank: int,
    tolerance: ToleranceLike = "paper",
    *,
    law: AskedLaw = "auto",
) -> int:
    """The least depth at which ``predicted_rank`` is ``rank`` or less.

    Raises
    ------
    UsageError
        When ``rank`` is below one (σ_1 always counts) or above ``n``, or the threshold is zero, so that no depth
        suffices.

    Examples
    --------
    >>> depth_to_rank(1000, 250)
    50
    """
    n, rank = count_of(n, "n", most=10**7), count_of(rank, "rank")
    choice_of(law, "law", _LAWS)
    rtol = relative_tolerance(tolerance, (n, n))
    if rank > n:
        raise UsageError(f"rank is {rank}, above the width n = {n}; no chain has that rank: give 1 to {n}")
    if rank == n:
        return 1
    if rtol == 0:
        raise UsageError("rtol is 0: a Gaussian chain keeps exact rank n at every depth; give an rtol above 0")
    tol, high = Tolerance(rtol=rtol), 1
    while predicted_rank(n, high, tol, law=law).rank > rank:
        high *= 2
    low = high // 2  # bisection, as the rank never rises with depth: here it is still too high, or low is 0
    while high - low > 1:
        middle = (low + high) // 2
        if predicted_rank(n, middle, tol, law=law).rank > rank:
            low = middle
        else:
            high = middle
    return high


def _count(n: int, depth: int, rtol: float, law: str) -> float:
    if law == "lyapunov":
        return float(_theorem_5_count(n, depth, rtol))
    if law in _SHALLOW:
        return _fuss_catalan_count(n, depth, rtol, edge=law == "tracy-widom")
    return _lyapunov_mean(n, depth, rtol)


def _auto_count(n: int, depth: int, rtol: float) -> float:
    """The two laws and the way between them: continuous, and never rising with depth.

    Where a count is at 1 or at n, one law may stand still below the other, so that a mean with moving weights rises.
    So the means are taken at fixed depths, none below the next, none above Tracy–Widom's last value, and interpolated.
    """
    first, last = (side * n for side in _BLEND)
    if depth <= first:
        return _fuss_catalan_count(n, depth, rtol, edge=True)
    cap = _fuss_catalan_count(n, first, rtol, edge=True)
    if depth >= last:
        return min(cap, _lyapunov_mean(n, depth, rtol))
    weights = np.linspace(0, 1, 9)
    depths = first * (last / first) ** weights
    means = [
        (1 - w) * _fuss_catalan_count(n, at, rtol, edge=True) + w * _lyapunov_mean(n, at, rtol)
        for w, at in zip(weights.tolist(), depths.tolist(), strict=True)
    ]
    falling = np.minimum(cap, np.maximum.accumulate(means[::-1])[::-1])
    return float(np.exp(PchipInterpolator(np.log(depths), np.log(falling))(math.log(depth))))


def _theorem_5_count(n: int, depth: float, rtol: float) -> int:
    """#{k : (L/2)[ψ(n/2) − ψ((n−k+1)/2)] ≤ log 1/rtol}."""
    if rtol == 0:
        return n
    lost = depth / 2 * (digamma(n / 2) - digamma((n - np.arange(n)) / 2))
    return int((lost <= -math.log(rtol)).sum())


def _lyapunov_mean(n: int, depth: float, rtol: float) -> float:
    """1 + Σ P(X_k ≤ log 1/rtol | X_k ≥ 0) over k ≥ 2."""
    if rtol == 0:
        return float(n)
    if rtol >= 1 or n == 1:
        return float(rtol <= 1)
    half = (n - np.arange(1, n)) / 2
    mean = depth / 2 * (digamma(n / 2) - digamma(half))
    deviation = np.sqrt(depth / 4 * (polygamma(1, n / 2) + polygamma(1, half)))
    reach = -math.log(rtol)
    # P(0 ≤ X ≤ reach) of a Gaussian, from the tail in which it does not cancel
    near, far = mean / deviation, (mean - reach) / deviation
    inside = ndtr(-far) - ndtr(-near)
    return 1 + float(np.clip(inside / ndtr(near), 0, 1).sum())


def _fuss_catalan_count(n: int, depth: float, rtol: float, *, edge: bool = False) -> float:
    """n·P(x ≥ rtol²·x_max), at least 1; with ``edge`` x_max is replaced by the mean of the largest x."""
    if rtol == 0:
        return float(n)
    if rtol >= 1:
        return float(rtol == 1)
    target = 2 * math.log(rtol) + (log_edge_shift(n, 1 / depth, depth / (depth + 1)) if edge else 0.0)
    # In θ = (L+1)φ/π ∈ (0, 1): log x/x_max falls from 0 to −∞ as δ = 1 − θ falls from 1 to 0, like (L+1)·log δ.
    low, high = -740.0, math.log1p(-1e-12)
    if _log_position(math.exp(low), depth) >= target:
        return float(n)
    if _log_position(math.exp(high), depth) <= target:
        return 1.0
    rest = math.exp(brentq(lambda s: _log_position(math.exp(s), depth) - target, low, high, xtol=1e-15, rtol=1e-14))
    phi = math.pi * (1 - rest) / (depth + 1)
    ratio = math.sin(phi) * math.sin(math.pi * rest) / math.sin(math.pi * rest + phi)
    return min(float(n), max(1.0, n * (1 - rest - depth * ratio / math.pi)))


def _log_position(rest: float, depth: float) -> float:
    """log(x(φ)/x_max) at φ = π(1 − rest)/(L+1)."""
    phi = math.pi * (1 - rest) / (depth + 1)
    # sin((L+1)φ) = sin(π·rest) and sin(Lφ) = sin(π·rest + φ): neither loses its digits near the hard edge
    log_x = (depth + 1) * math.log(math.sin(math.pi * rest)) - math.log(math.sin(phi))
    log_x -= depth * math.log(math.sin(math.pi * rest + phi))
    return log_x - ((depth + 1) * math.log(depth + 1) - depth * math.log(depth))
