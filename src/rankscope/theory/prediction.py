"""How many singular values of a Gaussian chain lie above a relative threshold, by depth: closed forms, no sampling.

Two laws, for widths n and depths L of different proportion:

Fuss–Catalan (n → ∞ at fixed L). The squared singular values x of the product of L square matrices with entries of
variance 1/n lie where x(φ) = sin^{L+1}((L+1)φ) / (sin φ · sin^L(Lφ)), φ ∈ (0, π/(L+1)), falling from
x_max = (L+1)^{L+1}/L^L to 0 (Haagerup and Möller 2013; Forrester and Liu 2015). Their resolvent w = z·G(z) satisfies
z = w^{L+1}/(w − 1), so ∫G dz = ∫w·dz/z = L·w − log(w − 1), and on the cut w − 1 = sin φ/sin(Lφ)·e^{i(L+1)φ}. Taking
imaginary parts gives the distribution without an integral:

    P(x ≥ x(φ)) = [(L+1)φ − L·sin φ·sin((L+1)φ)/sin(Lφ)] / π.

Lyapunov (L → ∞ at fixed n, Theorem 5): log σ_k = L·λ_k.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma

from rankscope._base.errors import UsageError, nearest
from rankscope.spectra import Tolerance, ToleranceLike, as_tolerance
from rankscope.theory._matrices import positive_integer

__all__ = ["CROSSOVER", "Law", "RankPrediction", "depth_to_rank", "predicted_rank", "relative_tolerance"]

Law = Literal["fuss-catalan", "lyapunov"]
_LAWS = ("auto", "fuss-catalan", "lyapunov")
# Measured: for n = 10, 50, 200 and rtol 1e-2, 1e-5, 1e-10 the Fuss–Catalan count was within 1.1 of the mean of
# simulated chains up to L = 4n, where both laws are equally far off; beyond, Theorem 5 is the closer one.
CROSSOVER = 4


@dataclass(frozen=True)
class RankPrediction:
    """A predicted numerical rank and whether the law that gave it may be used there.

    Attributes
    ----------
    value : float
        Expected rank; not a whole number under the Fuss–Catalan law. At least 1, since σ_1 always counts.
    n, depth : int
        Width and number of layers.
    rtol : float
        Threshold on σ/σ_1.
    tolerance : str
        Name of the convention that set ``rtol``.
    law : str
        ``"fuss-catalan"`` or ``"lyapunov"``, also when ``"auto"`` was asked for.
    depth_range : tuple
        Depths (first, last) for which this law is the closer one at this width; last is None when there is no end.
    in_range : bool
        Whether ``depth`` lies in ``depth_range``.
    """

    value: float
    n: int
    depth: int
    rtol: float
    tolerance: str
    law: Law
    depth_range: tuple[int, int | None]
    in_range: bool

    @property
    def rank(self) -> int:
        """``value`` rounded to the nearest whole number."""
        return math.floor(self.value + 0.5)

    def __int__(self) -> int:
        return self.rank

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema_version": 1, **asdict(self), "rank": self.rank, "depth_range": list(self.depth_range)}

    def __str__(self) -> str:
        first, last = self.depth_range
        span = f"{first} ≤ L ≤ {last}" if last is not None else f"L ≥ {first}"
        flag = "" if self.in_range else f"; OUTSIDE the law's range {span}"
        return f"{self.value:.1f} of {self.n} after {self.depth} layers ({self.law}, {self.tolerance}{flag})"


def relative_tolerance(tolerance: ToleranceLike, shape: tuple[int, int]) -> float:
    """rtol of a tolerance for a matrix of this shape; a prediction has no scale, so an absolute threshold is refused.

    >>> relative_tolerance("paper", (1000, 1000))
    0.00011920928955078125
    """
    tol = as_tolerance(tolerance)
    if tol.atol:
        raise UsageError(f"the tolerance {tol.name} has an absolute part; a prediction needs rtol alone")
    return tol.relative(shape)


def predicted_rank(
    n: int, depth: int, tolerance: ToleranceLike = "paper", *, law: Literal["auto", "fuss-catalan", "lyapunov"] = "auto"
) -> RankPrediction:
    """Numerical rank of a product of ``depth`` independent n × n Gaussian matrices. The scale of the entries cancels.

    Parameters
    ----------
    n, depth : int
        Width and number of layers, at least 1 each.
    tolerance : Tolerance, str or float
        Threshold on σ/σ_1 for an n × n matrix.
    law : str
        ``"fuss-catalan"`` (closer for depth ≤ 4n), ``"lyapunov"`` (Theorem 5, beyond), or ``"auto"`` for whichever
        holds at this depth. A law asked for outside its range still answers; ``in_range`` then is False.

    Raises
    ------
    UsageError
        When ``n`` or ``depth`` is below one, the law is unknown, or the tolerance is absolute.

    Examples
    --------
    >>> print(predicted_rank(1000, 50))
    248.4 of 1000 after 50 layers (fuss-catalan, paper)
    >>> predicted_rank(1000, 50, law="lyapunov").rank
    303
    """
    n, depth = positive_integer("n", n), positive_integer("depth", depth)
    if law not in _LAWS:
        raise UsageError(f"unknown law {law!r}; {nearest(str(law), _LAWS)}")
    rtol = relative_tolerance(tolerance, (n, n))
    last = CROSSOVER * n
    chosen: Law = ("fuss-catalan" if depth <= last else "lyapunov") if law == "auto" else law
    depth_range: tuple[int, int | None]
    if chosen == "fuss-catalan":
        value, depth_range = _fuss_catalan_count(n, depth, rtol), (1, last)
    else:
        value, depth_range = float(_lyapunov_count(n, depth, rtol)), (last, None)
    in_range = depth >= depth_range[0] and (depth_range[1] is None or depth <= depth_range[1])
    return RankPrediction(value, n, depth, rtol, as_tolerance(tolerance).name, chosen, depth_range, in_range)


def depth_to_rank(
    n: int,
    rank: int,
    tolerance: ToleranceLike = "paper",
    *,
    law: Literal["auto", "fuss-catalan", "lyapunov"] = "auto",
) -> int:
    """The least depth at which ``predicted_rank`` is ``rank`` or less.

    Under ``"auto"`` the Fuss–Catalan answer is kept when it lies in that law's range; otherwise Theorem 5 answers.

    Raises
    ------
    UsageError
        When ``rank`` is below one (σ_1 always counts) or above ``n``, or the threshold is zero, so that no depth
        suffices.

    Examples
    --------
    >>> depth_to_rank(1000, 248)
    50
    """
    n, rank = positive_integer("n", n), positive_integer("rank", rank)
    if law not in _LAWS:
        raise UsageError(f"unknown law {law!r}; {nearest(str(law), _LAWS)}")
    rtol = relative_tolerance(tolerance, (n, n))
    if rank > n:
        raise UsageError(f"rank is {rank}, above the width n = {n}; no chain has that rank: give 1 to {n}")
    if rank == n:
        return 1
    if rtol == 0:
        raise UsageError("rtol is 0: a Gaussian chain keeps exact rank n at every depth; give an rtol above 0")
    tol = Tolerance(rtol=rtol)
    if law != "lyapunov":
        found = _first_depth(n, rank, tol, "fuss-catalan")
        if law == "fuss-catalan" or found <= CROSSOVER * n:
            return found
    found = _first_depth(n, rank, tol, "lyapunov")
    return found if law == "lyapunov" else max(found, CROSSOVER * n + 1)


def _first_depth(n: int, rank: int, tolerance: Tolerance, law: Law) -> int:
    """Bisection: the predicted rank never rises with depth."""
    high = 1
    while predicted_rank(n, high, tolerance, law=law).rank > rank:
        high *= 2
    low = high // 2  # here the rank is still too high, or low is 0
    while high - low > 1:
        middle = (low + high) // 2
        if predicted_rank(n, middle, tolerance, law=law).rank > rank:
            low = middle
        else:
            high = middle
    return high


def _lyapunov_count(n: int, depth: int, rtol: float) -> int:
    """#{k : (L/2)[ψ(n/2) − ψ((n−k+1)/2)] ≤ log 1/rtol}."""
    if rtol == 0:
        return n
    lost = depth / 2 * (digamma(n / 2) - digamma((n - np.arange(n)) / 2))
    return max(1, int((lost <= -math.log(rtol)).sum()))


def _fuss_catalan_count(n: int, depth: int, rtol: float) -> float:
    """n·P(x ≥ rtol²·x_max), at least 1."""
    if rtol == 0:
        return float(n)
    if rtol >= 1:
        return 1.0
    # In θ = (L+1)φ/π ∈ (0, 1): log x/x_max falls from 0 to −∞.
    theta = brentq(lambda t: _log_position(t, depth) - 2 * math.log(rtol), 1e-12, 1 - 1e-16, xtol=1e-15, rtol=1e-14)
    phi = math.pi * theta / (depth + 1)
    ratio = math.sin(phi) * math.sin(math.pi * theta) / math.sin(depth * phi)
    return max(1.0, n * (math.pi * theta - depth * ratio) / math.pi)


def _log_position(theta: float, depth: int) -> float:
    """log(x(φ)/x_max) at φ = πθ/(L+1)."""
    phi = math.pi * theta / (depth + 1)
    # sin(πθ) near θ = 1 and sin(Lφ) = sin(πθ − φ) lose their digits unless written from the far end
    top = math.sin(math.pi * (1 - theta)) if theta > 0.5 else math.sin(math.pi * theta)
    log_x = (depth + 1) * math.log(top) - math.log(math.sin(phi)) - depth * math.log(math.sin(depth * phi))
    return log_x - ((depth + 1) * math.log(depth + 1) - depth * math.log(depth))
