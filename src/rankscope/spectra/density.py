"""``SpectralDensity``: the Lanczos coefficients of a few probes, from which a rank at any tolerance can be read.

Reading a rank adds up what is uncertain, each part rigorous or with its stated failure probability:

- the quadrature: bounds on every probe's share above the threshold (``quadrature``), reported alone as ``bracket``;
- the errors of the products: each probe's T belongs to A + E with ‖E‖₂ bounded, so eigenvalues move by at most that
  (Weyl) and the lower bound is read at a higher threshold, the upper at a lower one. As elsewhere in the package, E is
  taken as independent of the probe;
- σ₁: τ = rtol·σ₁ is known between the Ritz value and its bound (``topvalue``);
- the sampling: the interval of the Beta law (``sampling``). Where the leading eigenvalues were computed and a bound on
  all others is below the threshold (``deflation``), the rank is counted, and none of the above matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope._base.errors import DataError
from rankscope._base.facts import Fact
from rankscope._base.records import Record
from rankscope.spectra.quadrature import gauss_rule, interpolated_share, share_above
from rankscope.spectra.sampling import count_interval, relative_standard_error
from rankscope.spectra.spectrum import Spectrum
from rankscope.spectra.tolerance import ToleranceLike, as_tolerance
from rankscope.spectra.topvalue import largest_eigenvalue_bound
from rankscope.views.density_figure import plot_density
from rankscope.views.phrases import bounds, counted, probability, shape_of
from rankscope.views.sentences import note

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["AnySpectrum", "DensityRank", "Estimate", "SpectralDensity"]

_UNIT = 2.0**-53


@dataclass(frozen=True)
class Estimate:
    """A number from random probes and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class DensityRank:
    """A numerical rank estimated from random probes, with bounds.

    Attributes
    ----------
    value : int
        Best estimate of the number of singular values at or above the threshold.
    lower, upper : int
        The rank of the exact matrix is between these, except with probability ``failure``.
    standard_error : float
        Of ``value``, from the choice of probes alone. It is 0 where ``lower`` equals ``upper``, and else NaN where
        ``value`` is 0.
    bracket : float
        Width of the quadrature's bounds, as a share of N = min(rows, columns). More steps reduce it.
    threshold : float
        τ, in the units of the singular values.
    failure : float
        Probability that [lower, upper] misses; the bound on the products' error has its own on top.
    certified : bool
        Whether the error of the products is bounded; if not, ``lower`` and ``upper`` are 0 and N.
    """

    value: int
    lower: int
    upper: int
    standard_error: float
    bracket: float
    threshold: float
    tolerance: str
    dtype: str
    failure: float
    certified: bool = True

    @property
    def width(self) -> int:
        """Singular values between the bounds: quadrature, sampling, τ and the products' error together."""
        return self.upper - self.lower

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        certain = bounds(self.lower, self.upper) if self.certified else "not certified"
        probable = f"failure probability {probability(self.failure)}"
        return f"{self.value:,} {certain} ({self.tolerance}, {self.dtype}, {probable})"


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity(Record):
    """The Lanczos coefficients of r Gaussian probes of JᵀJ or JJᵀ, whichever is smaller.

    Attributes
    ----------
    shape : tuple of int
        (rows, columns) of J.
    alpha, beta : numpy.ndarray
        float64, shape (r, m), zero beyond a probe's own steps; in units of 4^exponent. The last ``beta`` of a probe is
        the length of its last residual, 0 where its Krylov space is invariant.
    steps : numpy.ndarray
        int64, shape (r,).
    squared_norms : numpy.ndarray
        ‖g‖² of each Gaussian probe, shape (r,).
    removed : numpy.ndarray
        Norm of the components that symmetry excludes and that were removed, shape (r,), in units of 4^exponent.
    exponent : int
        The products were those of J·2^-exponent.
    dtype : str
        What the products were computed in.
    product_error : float
        Bound on the spectral norm of the products' error, in units of 4^exponent; NaN when unknown.
    failure : float
        Failure probability of the bounds that ``rank`` gives.
    leading, residual, rest, leading_error
        What was found of the leading eigenvalues where the rank is low: see ``rankscope.spectra.deflation.Leading``.
        ``leading`` is empty and ``rest`` infinite where nothing was.

    Raises
    ------
    DataError
        When a coefficient is not finite or shapes do not agree.
    """

    shape: tuple[int, int]
    alpha: NDArray[np.float64]
    beta: NDArray[np.float64]
    steps: NDArray[np.int64]
    squared_norms: NDArray[np.float64]
    removed: NDArray[np.float64]
    exponent: int = 0
    dtype: str = "float64"
    product_error: float = 0.0
    failure: float = 1e-6
    seed: int = 0
    leading: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    residual: float = 0.0
    rest: float = math.inf
    leading_error: float = 0.0
    facts: tuple[Fact, ...] = field(default=())

    derived: ClassVar[tuple[str, ...]] = ("sigma_max", "stable_rank", "participation_ratio", "effective_rank")

    def __post_init__(self) -> None:
        probes = len(self.steps)
        sizes = (self.alpha.shape, self.beta.shape, self.squared_norms.shape, self.removed.shape)
        if not probes or sizes != (self.alpha.shape, self.alpha.shape, (probes,), (probes,)):
            raise DataError(f"coefficients of {probes} probes do not agree in shape: {sizes}")
        for name in ("alpha", "beta", "squared_norms", "removed", "leading"):
            if not np.isfinite(getattr(self, name)).all():
                raise DataError(f"{name} of a spectral density has NaN or infinite entries")

    @property
    def size(self) -> int:
        """N = min(rows, columns)."""
        return min(self.shape)

    @property
    def probes(self) -> int:
        return len(self.steps)

    def _jacobi(self, probe: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        m = int(self.steps[probe])
        return self.alpha[probe, :m], self.beta[probe, :m]

    @cached_property
    def _nodes(self) -> list[NDArray[np.float64]]:
        return [gauss_rule(a, b[:-1])[0] for a, b in map(self._jacobi, range(self.probes))]

    @cached_property
    def _top(self) -> float:
        """The largest Ritz value, in units of 4^exponent."""
        return max(float(values[0]) for values in [*self._nodes, self.leading] if len(values))

    @property
    def _errors(self) -> NDArray[np.float64]:
        """Bound on ‖E‖₂ of each probe: the products, what was removed, and float64 rounding of the process itself."""
        rounding = 8 * _UNIT * (self.alpha.shape[1] + math.sqrt(self.size)) * max(self._top, 0.0)
        return self.product_error + self.removed + rounding

    @cached_property
    def _top_bounds(self) -> tuple[float, float]:
        errors = self._errors
        least = max(float(nodes[0]) - e for nodes, e in zip(self._nodes, errors, strict=True))
        invariant = all(self._jacobi(p)[1][-1] == 0 for p in range(self.probes))
        forms = float((self.squared_norms * self.alpha[:, 0]).max())
        most = largest_eigenvalue_bound(
            self._top,
            size=self.size,
            steps=int(self.steps.min()),
            probes=self.probes,
            failure=self.failure / 4,
            forms=forms + float((self.squared_norms * errors).max()),
            invariant=invariant,
        )
        most += 2 * float(errors.max())
        if len(self.leading) and self.leading[0] - self._leading_error > self.rest:
            first, error = float(self.leading[0]), self._leading_error
            least = max(least, first - error)
            most = min(most, first + error + (self.residual + error) ** 2 / (first - error - self.rest))
        return max(least, 0.0), most

    @property
    def _leading_error(self) -> float:
        """Bound on the error of each of the leading values."""
        return self.product_error + self.leading_error

    def agrees(self, other: SpectralDensity, rounding: float) -> bool:
        """Whether the first step of the same probes gave the same, up to the error of both products.

        ``rounding`` is what their errors may be beside that, relative to the largest Ritz value.
        """
        if (self.shape, self.probes, self.seed) != (other.shape, other.probes, other.seed):
            return False
        one, two = self.exponent, other.exponent
        unit = 4.0 ** np.clip(two - one, -500, 500)
        top = max(self._top, other._top * unit, 0.0)
        known = [e * u for e, u in ((self.product_error, 1.0), (other.product_error, unit)) if not math.isnan(e)]
        slack = 4 * (sum(known) + rounding * top)
        gaps = [np.abs(a[:, 0] - b[:, 0] * unit) for a, b in ((self.alpha, other.alpha), (self.beta, other.beta))]
        return bool(max(float(gap.max()) for gap in gaps) <= slack)

    @property
    def is_zero(self) -> bool:
        """Whether the matrix is known to be zero."""
        return self._top <= 0.0 and self.product_error == 0.0

    @property
    def sigma_max(self) -> float:
        """The largest Ritz value of J, which is at most σ₁."""
        return float(np.ldexp(math.sqrt(max(self._top, 0.0)), self.exponent))

    def rank(self, tolerance: ToleranceLike = "paper") -> DensityRank:
        """Number of singular values at or above the tolerance's threshold, with bounds; see the file's head."""
        tol = as_tolerance(tolerance)
        rtol = tol.relative(self.shape, getattr(torch, self.dtype, torch.float32))
        absolute = float(np.ldexp(tol.atol or 0.0, -self.exponent))
        top, certified = max(self._top, 0.0), not math.isnan(self.product_error)

        def squared(largest: float) -> float:
            return max(rtol * math.sqrt(largest), absolute) ** 2

        tau = float(np.ldexp(math.sqrt(squared(top)), self.exponent))
        if top == 0.0:
            return self._read(0, 0, 0 if self.product_error == 0 else self.size, 0.0, tau, tol.name, certified)
        x = squared(top)
        exact = [share_above(*self._jacobi(p), x) for p in range(self.probes)]
        share = self._pooled([interpolated_share(*self._jacobi(p), x) for p in range(self.probes)])
        bracket = self._pooled([high - low for low, high in exact])
        lower, upper = 0, self.size
        if certified:
            lower, upper = self._bounds(squared(self._top_bounds[1]), squared(self._top_bounds[0]))
        value = round(self.size * share)
        if x > self.rest:
            value, bracket = int((self.leading >= x).sum()), min(bracket, (upper - lower) / self.size)
        value = min(max(value, lower), upper)
        return self._read(value, lower, upper, bracket, tau, tol.name, certified)

    def _read(
        self, value: int, lower: int, upper: int, bracket: float, tau: float, name: str, certified: bool
    ) -> DensityRank:
        if not certified:
            lower, upper = 0, self.size
        error = value * relative_standard_error(value, self.size, self.probes) if value else math.nan
        if certified and lower == upper:
            error = 0.0  # nothing is left to chance but the bounds themselves
        return DensityRank(value, lower, upper, error, bracket, tau, name, self.dtype, self.failure, certified)

    def _bounds(self, highest: float, lowest: float) -> tuple[int, int]:
        """Bounds on the count where the squared threshold is between ``lowest`` and ``highest``."""
        lows, highs, least, most = [], [], 0, self.size
        for p, error in enumerate(self._errors):
            above, below = highest + error, lowest - error
            lows.append(share_above(*self._jacobi(p), above)[0])
            highs.append(share_above(*self._jacobi(p), below)[1] if below > 0 else 1.0)
            least = max(least, int((self._nodes[p] > above).sum()))  # Ritz values interlace: no chance in it
            if self.steps[p] == self.size:  # T is then similar to A + E
                most = min(most, int((self._nodes[p] >= below).sum()))
        error = self._leading_error
        least = max(least, int((self.leading >= highest + error).sum()))
        if lowest > self.rest:
            moved = error + (self.residual + error) ** 2 / (lowest - self.rest)
            most = min(most, int((self.leading >= lowest - moved).sum()))
        low, high = count_interval(self._pooled(lows), self._pooled(highs), self.size, self.probes, self.failure / 2)
        lower, upper = max(low, least), min(high, most)
        return min(lower, upper), max(lower, upper)

    def _pooled(self, shares: list[float]) -> float:
        pooled = float(self.squared_norms @ np.array(shares) / self.squared_norms.sum())
        return min(max(pooled, min(shares)), max(shares))  # rounding made 1 − 2⁻⁵³ of ones, which full rank cannot be

    @cached_property
    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """gᵀAg and gᵀA²g of every probe."""
        first = self.squared_norms * self.alpha[:, 0]
        return first, self.squared_norms * (self.alpha[:, 0] ** 2 + self.beta[:, 0] ** 2)

    @property
    def stable_rank(self) -> Estimate | None:
        """‖J‖²_F/σ₁²: Var gᵀAg = 2‖A‖²_F. The Ritz value stands for σ₁². None for a zero matrix."""
        if self._top <= 0:
            return None
        first, second = self._moments
        error = math.sqrt(2 * second.mean() / self.probes) / self._top
        return Estimate(float(first.mean()) / self._top, error)

    @property
    def participation_ratio(self) -> Estimate | None:
        """(Σσ²)²/Σσ⁴, with the jackknife's standard error. None for a zero matrix and for a single probe."""
        first, second = self._moments
        if self._top <= 0 or self.probes < 2:
            return None
        n = self.probes
        left_out = ((first.sum() - first) / (n - 1)) ** 2 / ((second.sum() - second) / (n - 1))
        error = math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))
        return Estimate(float(first.mean() ** 2 / second.mean()), error)

    @property
    def effective_rank(self) -> Estimate | None:
        """None: the entropy of σ depends on the spectrum near zero, which no finite number of moments bounds."""
        return None

    def table(self) -> pd.DataFrame:
        """One row a threshold: rtol, value, lower, upper, standard_error, bracket."""
        import pandas as pd

        rows = []
        for rtol in np.logspace(0, -4, 17):
            found = self.rank(float(rtol))
            rows.append({"rtol": rtol, "value": found.value, "lower": found.lower, "upper": found.upper})
            rows[-1] |= {"standard_error": found.standard_error, "bracket": found.bracket}
        return pd.DataFrame(rows)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Singular values at or above each threshold, with the band of their bounds."""
        rtol = np.logspace(0, -4, 33)
        ranks = [self.rank(float(t)) for t in rtol]
        counts = np.array([[r.value, r.lower, r.upper] for r in ranks], dtype=np.float64)
        return plot_density(rtol, counts, size=self.size, title=str(self).split("\n")[0], ax=ax)

    def __str__(self) -> str:
        most = int(self.steps.max())
        steps = "" if int(self.steps.min()) == most else "up to "
        lines = [
            f"{shape_of(self.shape)}, {self.dtype}: {counted(self.probes, 'probe')}, "
            f"{steps}{counted(most, 'Lanczos step')}"
        ]
        lines.append(f"Rank: {self.rank('paper')}.")
        return "\n".join([*lines, *map(note, self.facts)])

    def __repr__(self) -> str:
        return f"SpectralDensity({self.shape[0]}×{self.shape[1]}, {self.dtype}, σ₁≥{self.sigma_max:.4g}, {self.rank()})"


AnySpectrum: TypeAlias = Spectrum | SpectralDensity
"""What one cut point leaves of one image: every singular value, or probes of them."""
