"""What can be said for certain of the rank of a product and of a perturbed matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rankscope._base.errors import DataError, UsageError
from rankscope._base.records import Record
from rankscope.spectra import Spectrum, Tolerance, ToleranceLike, as_tolerance
from rankscope.theory._matrices import Matrix, as_matrix
from rankscope.views.bars_figure import plot_bars

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["CompositionBound", "composition_bound", "stability_radius"]


@dataclass(frozen=True, eq=False)
class CompositionBound(Record):
    """Both sides of Rank_{rtol·κ}(BA) ≤ Rank_rtol(A), κ = ‖A‖‖B‖/‖BA‖.

    Attributes
    ----------
    before : int
        Rank_rtol(A).
    after : int
        Rank_rtol(BA), at the same rtol: this one may exceed ``before``.
    bounded : int
        Rank_{rtol·κ}(BA): this one may not.
    kappa : float
        κ ≥ 1; infinite when BA = 0.
    rtol : float
        The threshold on σ/σ_1 of A.
    tolerance : str
        Name of the tolerance that set ``rtol``.
    """

    before: int
    after: int
    bounded: int
    kappa: float
    rtol: float
    tolerance: str

    derived: ClassVar[tuple[str, ...]] = ("holds", "rose")

    @property
    def holds(self) -> bool:
        """Whether ``bounded`` ≤ ``before``; False only through rounding at the threshold."""
        return self.bounded <= self.before

    @property
    def rose(self) -> bool:
        """Whether the numerical rank at one and the same rtol rose from A to BA, which it may."""
        return self.after > self.before

    def table(self) -> pd.DataFrame:
        """One row: both ranks at the same rtol, the bounded one, κ, and whether the bound holds."""
        import pandas as pd

        names = ("before", "after", "bounded", "kappa", "rtol", "tolerance", "holds", "rose")
        return pd.DataFrame([{name: getattr(self, name) for name in names}])

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """The three ranks as bars."""
        title = f"tolerance: {self.tolerance}, κ = {self.kappa:.4g}"
        names = ("A", "BA", "BA at κ·rtol")
        return plot_bars(names, (self.before, self.after, self.bounded), quantity="rank", title=title, ax=ax)

    def __str__(self) -> str:
        rise = " (a rise at equal rtol)" if self.rose else ""
        return (
            f"rank {self.before:,} before, {self.after:,} after{rise}; at κ = {self.kappa:.4g} times the threshold "
            f"{self.bounded:,} ≤ {self.before:,} ({self.tolerance})"
        )


def composition_bound(a: Any, b: Any, tolerance: ToleranceLike = "paper") -> CompositionBound:
    """Compare the rank of A with that of BA at the threshold for which a fall is certain.

    σ_i(BA) ≤ ‖B‖·σ_i(A); so if σ_i(BA) ≥ rtol·κ·‖BA‖ = rtol·‖A‖·‖B‖, then σ_i(A) ≥ rtol·‖A‖. The rtol is the one that
    the tolerance gives A, for BA too. No scale of A or B matters: both are brought to largest entries near 1 first.

    Parameters
    ----------
    a, b : matrix
        A (d × n) acts first, B (m × d) on its result.
    tolerance : Tolerance, str or float
        Relative threshold.

    Raises
    ------
    DataError
        When a matrix is not finite, the shapes do not chain, or B·A underflows although A and B are scaled.
    UsageError
        When the tolerance is absolute.

    Examples
    --------
    >>> print(composition_bound([[1.0, 0.0], [0.0, 0.1]], [[0.1, 0.0], [0.0, 1.0]], 0.5))
    rank 1 before, 2 after (a rise at equal rtol); at κ = 10 times the threshold 0 ≤ 1 (constant (rtol=0.5))
    """
    first, second = as_matrix(a, "a"), as_matrix(b, "b")
    if second.shape[1] != first.shape[0]:
        raise DataError(f"b has {second.shape[1]} columns but a has {first.shape[0]} rows; b·a must exist")
    tol = as_tolerance(tolerance)
    if tol.atol:
        raise UsageError(f"the tolerance {tol.name} has an absolute part; the bound needs rtol alone")
    first, second = _scaled(first), _scaled(second)
    spectrum, product = Spectrum.of(first), Spectrum.of(_product(second, first))
    rtol = tol.relative(spectrum.shape)
    norms = spectrum.sigma_max * Spectrum.of(second).sigma_max
    kappa = math.inf if product.is_zero else norms / product.sigma_max
    bounded = 0 if product.is_zero else product.rank(Tolerance(rtol=rtol * kappa)).value
    constant = Tolerance(rtol=rtol)
    return CompositionBound(spectrum.rank(constant).value, product.rank(constant).value, bounded, kappa, rtol, tol.name)


def _scaled(matrix: Matrix) -> Matrix:
    """The matrix times a power of two that brings its largest entry to between ½ and 1; exact."""
    largest = float(np.abs(matrix).max())
    return np.ldexp(matrix, -math.frexp(largest)[1]) if largest else matrix


def _product(second: Matrix, first: Matrix) -> Matrix:
    product = second @ first
    terms = ((second != 0).astype(float) @ (first != 0)).any()
    # did they cancel, or are all of them too small?
    if terms and not product.any() and (np.abs(second) @ np.abs(first)).max() < np.finfo(np.float64).tiny:
        raise DataError(
            "b·a underflows float64 although neither is zero: every product of their entries is below 1e-308 of "
            "the largest; use chain_singular_values([a, b])"
        )
    return product


def stability_radius(matrix: Any, tolerance: ToleranceLike = "paper", *, direction: Any = None) -> float:
    """Theorem 1: no perturbation δ·D with δ below this changes the numerical rank of ``matrix`` (or of a Spectrum).

    δ_max = min_i |σ_i − rtol·σ_1|/((1 + rtol)·‖D‖₂), with ‖D‖₂ = 1 unless ``direction`` gives D, of the matrix's own
    shape, or its norm, a finite number of at least 0.

    >>> stability_radius([[1.0, 0.0], [0.0, 0.25]], 0.5)
    0.16666666666666666
    """
    spectrum = matrix if isinstance(matrix, Spectrum) else Spectrum.of(matrix)
    return spectrum.stability_radius(tolerance, direction=direction)
