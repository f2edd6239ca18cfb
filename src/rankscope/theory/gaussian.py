"""Products of square Gaussian matrices: Lyapunov exponents in closed form (paper, Theorem 5 and Corollary 1).

The paper prints ψ = Γ/Γ′. The formulas hold for the digamma function ψ = Γ′/Γ (Newman, Commun. Math. Phys. 103, 1986):
|det| of the leading k-frame grows by a product of independent χ variables with n, n−1, …, n−k+1 degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

from rankscope._base.checks import count_of, number_of
from rankscope._base.records import Record
from rankscope.views.theory_figure import plot_spectrum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["GaussianExponents", "critical_std", "gaussian_exponents", "growth_rate"]


@dataclass(frozen=True, eq=False)
class GaussianExponents(Record):
    """Lyapunov exponents of a chain of independent n × n matrices with entries N(0, std²).

    Attributes
    ----------
    n : int
        Width.
    std : float
        Standard deviation of the entries.
    exponents : numpy.ndarray
        λ_1 > … > λ_n, nats per layer, float64, shape (n,): σ_k of a product of L layers grows like exp(L·λ_k).
    variances : numpy.ndarray
        Variance that each layer adds to log σ_k, shape (n,); after L layers log σ_k/L has variance ``variances``/L.
    """

    n: int
    std: float
    exponents: NDArray[np.float64]
    variances: NDArray[np.float64]

    @property
    def ratios(self) -> NDArray[np.float64]:
        """lim (σ_k/σ_1)^(1/L) of Theorem 5 (Eq. 10), shape (n,): 1 for k = 1, below 1 after."""
        return np.exp(self.exponents - self.exponents[0])

    def standard_errors(self, depth: int) -> NDArray[np.float64]:
        """Standard deviation of log σ_k/depth about λ_k, shape (n,)."""
        return np.sqrt(self.variances / count_of(depth, "depth", most=2**63 - 1))

    def table(self) -> pd.DataFrame:
        """One row an exponent: ``k``, ``exponent``, ``variance``, ``ratio``."""
        import pandas as pd

        columns = {"exponent": self.exponents, "variance": self.variances, "ratio": self.ratios}
        return pd.DataFrame({"k": np.arange(1, self.n + 1), **columns})

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Exponents by their index."""
        title = f"Gaussian layers of width {self.n:,}, entries N(0, {self.std:g}²)"
        return plot_spectrum(self.exponents, label="exponent (nats per layer)", title=title, ax=ax)

    def __repr__(self) -> str:
        return (
            f"GaussianExponents(n={self.n}, std={self.std:g}, λ_1={self.exponents[0]:.6g}, "
            f"λ_n={self.exponents[-1]:.6g} per layer)"
        )


def gaussian_exponents(n: int, std: float = 1.0) -> GaussianExponents:
    """λ_k = log s + ½[log 2 + ψ((n−k+1)/2)] and per-layer variances ¼ψ′((n−k+1)/2) (Theorem 5, ψ = Γ′/Γ).

    Parameters
    ----------
    n : int
        Width, at least 1.
    std : float
        Standard deviation s of the entries.

    Raises
    ------
    UsageError
        When ``n`` is below one or ``std`` is not a finite positive number.

    Examples
    --------
    >>> exponents = gaussian_exponents(2)
    >>> exponents.exponents.round(4).tolist()
    [0.058, -0.6352]
    """
    n, std = count_of(n, "n", most=10**7), number_of(std, "std", above=0)
    half = (n - np.arange(n)) / 2.0
    exponents = math.log(std) + 0.5 * (math.log(2.0) + digamma(half))
    return GaussianExponents(n, std, _frozen(exponents), _frozen(0.25 * polygamma(1, half)))


def growth_rate(n: int, std: float = 1.0) -> float:
    """Growth of log‖J‖₂ in nats per layer: log s + ½[log 2 + ψ(n/2)] (Corollary 1).

    The corollary says that this is positive for s = 1. It is for n ≥ 2; at n = 1 it is −0.635: a product of standard
    Gaussian numbers vanishes.

    >>> round(growth_rate(1), 3), round(growth_rate(2), 3)
    (-0.635, 0.058)
    """
    n, std = count_of(n, "n", most=10**7), number_of(std, "std", above=0)
    return math.log(std) + 0.5 * (math.log(2.0) + float(digamma(n / 2.0)))


def critical_std(n: int) -> float:
    """The standard deviation at which ``growth_rate`` is zero: exp(−½[log 2 + ψ(n/2)]), close to 1/√(n − 1).

    >>> round(critical_std(1000), 5)
    0.03164
    """
    return math.exp(-growth_rate(n))


def _frozen(values: Any) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    array.setflags(write=False)
    return array
