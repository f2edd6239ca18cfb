"""Chains of residual layers J = I + t·G/√n with Gaussian G, and the width that ReLU leaves.

The law of J does not change when J becomes QJQᵀ. So the volume of every k-frame grows by the same law at each layer,
and λ_k = E log|R_kk| in the QR factorisation of a single J: no chain has to be run to sample it.

Large n, c = k/n. R_kk² is (t²/n)·|P(g + √n/t·e_k)|² with P the projection off the first k−1 columns V, and
‖P·e_k‖² = 1/(1 + u), u = t²·c·g, where g = tr(VᵀV)⁻¹/k solves the equation for a signal plus noise (Dozier and
Silverstein 2007) at 0: 1/g = 1/(1 + u) + t²(1 − c). So w = R_kk² = t²(1 − c) + 1/(1 + u) = t²c/u is the root of
w² − (1 + t²(1 − 2c))·w − t⁴c(1 − c) = 0:

    λ(c) = ½ log ½[1 + t²(1 − 2c) + √(1 + 2t²(1 − 2c) + t⁴)].

For small t this is t²(1 − 2c)/2: spacing t²/n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln, xlogy

from rankscope._base.checks import count_of, number_of
from rankscope._base.errors import UsageError
from rankscope._base.progress import Progress, reporting
from rankscope._base.records import Record
from rankscope.spectra import ToleranceLike
from rankscope.theory._matrices import generator
from rankscope.theory.prediction import counts_nothing, relative_tolerance
from rankscope.views.phrases import counted
from rankscope.views.theory_figure import plot_spectrum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ResidualExponents", "relu_width", "residual_exponents"]


@dataclass(frozen=True, eq=False)
class ResidualExponents(Record):
    """Lyapunov exponents of a chain of layers I + t·G/√n.

    Attributes
    ----------
    n : int
        Width.
    t : float
        Size of the branch against the identity.
    exponents : numpy.ndarray
        λ_1 ≥ … ≥ λ_n, nats per layer, float64, shape (n,).
    standard_errors : numpy.ndarray
        Sampling error of each; zero where the closed form was used.
    samples : int or None
        Independent layers that were sampled (exact but for the standard error); ``None`` for the closed form, whose
        error is of order 1/n but at the hard edge: where |t − 1| is not large beside 1/√n the last exponent is up to
        0.25 too high at every n, and the m-th from the end up to 0.25/m.
    """

    n: int
    t: float
    exponents: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    samples: int | None

    derived: ClassVar[tuple[str, ...]] = ("method",)

    @property
    def method(self) -> str:
        """``samples`` in words."""
        return "closed form" if self.samples is None else f"sampled ({counted(self.samples, 'layer')})"

    def rank(self, depth: int, tolerance: ToleranceLike = "paper") -> int:
        """Numerical rank after ``depth`` layers by these exponents: #{k : L(λ_1 − λ_k) ≤ log 1/rtol}, at least 1.

        The limit of great depth. Before it this counts too many, 50 where simulated chains keep 43 (n = 200, t = 1,
        depth 100, paper tolerance): ``residual_chain_rank`` holds there, and says 42.6.
        """
        depth = count_of(depth, "depth", most=2**63 - 1)
        rtol = relative_tolerance(tolerance, (self.n, self.n))
        if counts_nothing(tolerance, rtol):
            return 0
        if rtol == 0:
            return self.n
        return max(1, int((depth * (self.exponents[0] - self.exponents) <= -math.log(rtol)).sum()))

    def table(self) -> pd.DataFrame:
        """One row an exponent: ``k``, ``exponent``, ``standard_error``."""
        import pandas as pd

        columns = {"exponent": self.exponents, "standard_error": self.standard_errors}
        return pd.DataFrame({"k": np.arange(1, self.n + 1), **columns})

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Exponents by their index, standard errors as whiskers."""
        title = f"Residual layers of width {self.n:,}, t = {self.t:g}"
        errors, label = self.standard_errors, "exponent (nats per layer)"
        return plot_spectrum(self.exponents, label=label, title=title, errors=errors, ax=ax)

    def __repr__(self) -> str:
        return (
            f"ResidualExponents(n={self.n}, t={self.t:g}, λ_1={self.exponents[0]:.4g}, λ_n={self.exponents[-1]:.4g}, "
            f"{self.method})"
        )


def residual_exponents(
    n: int, t: float, *, samples: int | None = None, seed: int = 0, progress: bool | Progress | None = None
) -> ResidualExponents:
    """Exponents of a chain of layers J = I + t·G/√n, entries of G independent N(0, 1).

    Parameters
    ----------
    n : int
        Width, at least 1.
    t : float
        Size of the branch; a layer h + W·h with entries of W of standard deviation s has t = s·√n.
    samples : int, optional
        Sample this many independent layers instead of using the closed form; at least 2. Exact at every n and k, with
        a standard error.
    seed : int
        Seed of the sampling.
    progress : bool or callable, optional
        Of the sampling; as in ``jacobian_rank``.

    Raises
    ------
    UsageError
        When ``n`` is below one, ``t`` is not a finite positive number, or ``samples`` is below two.

    Examples
    --------
    >>> residual_exponents(200, 0.05).rank(400)
    200
    """
    n, t = count_of(n, "n", most=10**7), number_of(t, "t", above=0)
    if samples is not None:
        return _sampled(n, t, samples, seed, progress)
    if n == 1:  # E log|1 + t·g| exactly: (1 + t·g)²/t² is a noncentral χ² variable
        exponents = np.array([math.log(t) + 0.5 * _log_noncentral_chi2(1, t**-2)])
    else:
        # 1 − c as the geometric mean of χ²_{n−k+1}/n: (n − k)/n but for the last few k, where it keeps the exponent
        # finite and makes the limit of large t exact (Theorem 5).
        share = 2 * np.exp(digamma((n - np.arange(n)) / 2)) / n
        if t > 1e30:  # t⁴ leaves the range of float64 beyond 1e77, and the identity is lost long before
            return ResidualExponents(n, t, math.log(t) + 0.5 * np.log(share), np.zeros(n), None)
        centre = t**2 * (2 * share - 1)
        root = np.sqrt(1 + 2 * centre + t**4)
        # ½(1 + centre + root), written without cancellation where 1 + centre < 0
        product = t**4 * share * (1 - share)
        w = np.where(1 + centre >= 0, (1 + centre + root) / 2, 2 * product / np.maximum(root - 1 - centre, 1e-300))
        exponents = 0.5 * np.log(w)
    return ResidualExponents(n, t, exponents, np.zeros(n), None)


def relu_width(n: int) -> int:
    """Width of the linear Gaussian chain that acts like a ReLU chain of width n: n/2, at least 1.

    Each ReLU keeps half of its units, at random, so n × n layers with masks act like n/2 × n/2 layers without. Use
    it with the rtol of the width n, as in ``predicted_rank(relu_width(n), depth, rtol)``.

    >>> relu_width(1000)
    500
    """
    return max(1, count_of(n, "n", most=10**7) // 2)


def _sampled(n: int, t: float, samples: int, seed: int, progress: bool | Progress | None) -> ResidualExponents:
    samples = count_of(samples, "samples", most=10**7)
    if samples < 2:
        raise UsageError("samples is 1; a standard error needs at least 2")
    rng = generator(seed)
    logs = np.empty((samples, n))
    with reporting(progress, "residual exponents") as report:
        for done, row in enumerate(logs, 1):
            r = np.linalg.qr(np.eye(n) + t / math.sqrt(n) * rng.standard_normal((n, n)), mode="r")
            row[:] = np.log(np.abs(np.diag(r)))
            report(done, samples, "layers")
    errors = logs.std(axis=0, ddof=1) / math.sqrt(samples)
    return ResidualExponents(n, t, logs.mean(axis=0), errors, samples)


def _log_noncentral_chi2(degrees: int, noncentrality: float) -> float:
    """E log χ'²: log 2 + E ψ(degrees/2 + j) with j Poisson of mean noncentrality/2.

    The Poisson sum is smooth on the scale of its standard deviation, so a stride of a third of it loses nothing.
    """
    mean = noncentrality / 2
    stride = max(1.0, math.floor(math.sqrt(mean + 1) / 3))
    j = math.floor(mean) + stride * np.arange(-60, 121)
    j = j[j >= 0]
    weights = np.exp(xlogy(j, mean) - mean - gammaln(j + 1))
    return math.log(2.0) + float(weights @ digamma(degrees / 2 + j) / weights.sum())
