"""The exponents of a chain with their errors, and what they say of Theorem 4's gap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, ndtr, stdtrit

from rankscope._base.records import Record
from rankscope.views.phrases import counted
from rankscope.views.theory_figure import plot_spectrum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["LyapunovExponents"]

_SIGMAS = 3.0  # a gap counts as resolved beyond this many standard errors, or Student's quantile of the same chance
_FLOOR = 1e-9  # and beyond this, the rounding of a sum over 10,000 layers with room to spare
_BATCHES = 8  # fewer batch means tell nothing of their own spread


@dataclass(frozen=True, eq=False)
class LyapunovExponents(Record):
    """Exponents of a chain, their errors, and where the gaps of Theorem 4 fail.

    Attributes
    ----------
    exponents : numpy.ndarray
        λ_1 ≥ … ≥ λ_k, nats per layer, float64, shape (k,); −inf where a layer is singular to float64 precision.
    standard_errors : numpy.ndarray
        Standard error of each from batch means over depth, shape (k,); NaN where the exponent is −inf or the chain has
        one layer.
    gap_errors : numpy.ndarray
        Standard error of λ_i − λ_{i+1}, shape (k−1,).
    spread_error : float
        Standard error of λ_1 − λ_k.
    n : int
        Width.
    depth : int
        Layers used.
    rank_drops : tuple of (int, int)
        (layer counted from 1, rank left of the frame) wherever a layer is singular on the frame to float64 precision.
        Such a layer may have the rank all the same, in digits that its product with a frame cannot hold.
    converged : bool or None
        Whether the requested standard error was met; None when none was requested.
    exact_drops : tuple of int
        The layers of ``rank_drops`` that are singular for certain: their zero or repeated rows or columns say so.
    batches : int
        Batch means behind the errors; below eight no gap is taken for resolved.
    """

    exponents: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    gap_errors: NDArray[np.float64]
    spread_error: float
    n: int
    depth: int
    rank_drops: tuple[tuple[int, int], ...]
    converged: bool | None
    exact_drops: tuple[int, ...] = ()
    batches: int = 0

    derived: ClassVar[tuple[str, ...]] = ("gap", "has_gap", "unresolved_gaps")

    @property
    def gap(self) -> Literal["resolved", "absent", "not resolved"]:
        """What is known of λ_1 − λ_k, which Theorem 4 says is above zero.

        ``"resolved"``: it exceeds three standard errors (for few batches Student's quantile of the same chance), or
        the last exponent is −∞. ``"absent"``: all n exponents agree to rounding, and their errors leave no more room;
        so for orthogonal layers, which meet the theorem's stated conditions and keep every ratio at 1.
        ``"not resolved"``: this depth, or so few exponents, do not decide.
        """
        if len(self.exponents) < 2 or math.isinf(self.exponents[0]):
            return "not resolved"
        if math.isinf(self.exponents[-1]):
            return "resolved"
        if math.isnan(self.spread_error):
            return "not resolved"
        spread = float(self.exponents[0] - self.exponents[-1])
        if spread > _FLOOR and self.batches >= _BATCHES and spread > self._limit(self.spread_error):
            return "resolved"
        tight = spread + self._limit(self.spread_error) <= _FLOOR
        return "absent" if tight and len(self.exponents) == self.n else "not resolved"

    def _limit(self, error: Any) -> Any:
        """What a difference of this standard error must exceed."""
        freedom = max(self.batches - 1, 1)
        return float(stdtrit(freedom, ndtr(_SIGMAS))) * error

    @property
    def has_gap(self) -> bool:
        """Whether λ_1 exceeds the last exponent by more than its error. False proves nothing: see ``gap``."""
        return self.gap == "resolved"

    @property
    def unresolved_gaps(self) -> tuple[int, ...]:
        """The i, counted from 1, for which λ_i − λ_{i+1} is zero within three standard errors (or Student's)."""
        with np.errstate(invalid="ignore"):
            gaps = np.nan_to_num(self.exponents[:-1] - self.exponents[1:], nan=0.0, posinf=np.inf)
        limits = np.maximum(_FLOOR, self._limit(np.nan_to_num(self.gap_errors)))
        return tuple(int(i) + 1 for i in np.flatnonzero(gaps <= limits))

    def table(self) -> pd.DataFrame:
        """One row an exponent: ``k``, ``exponent``, ``standard_error``."""
        import pandas as pd

        columns = {"exponent": self.exponents, "standard_error": self.standard_errors}
        return pd.DataFrame({"k": np.arange(1, len(self.exponents) + 1), **columns})

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Finite exponents by their index, standard errors as whiskers."""
        title = f"{len(self.exponents):,} of {counted(self.n, 'exponent')} after {counted(self.depth, 'layer')}"
        errors, label = self.standard_errors, "exponent (nats per layer)"
        return plot_spectrum(self.exponents, label=label, title=title, errors=errors, ax=ax)

    def __str__(self) -> str:
        lines = [
            f"{len(self.exponents):,} of {counted(self.n, 'Lyapunov exponent')} after {counted(self.depth, 'layer')}, "
            "nats per layer"
        ]
        for i, (value, error) in enumerate(zip(self.exponents, self.standard_errors, strict=True), 1):
            if i <= 5 or i == len(self.exponents):
                lines.append(f"  λ_{i} = {value:.6g}" + ("" if math.isnan(error) else f" ± {error:.1g}"))
        for layer, rank in self.rank_drops:
            how = "" if layer in self.exact_drops else " to float64 precision"
            lines.append(f"  layer {layer} is singular{how}: rank {rank:,} is left")
        if self.gap != "resolved" and len(self.exponents) > 1 and math.isfinite(self.exponents[0]):
            lines.append(f"  {self._no_gap()}")
        if self.converged is False:
            lines.append("  the requested standard error was not met; raise depth")
        return "\n".join(lines)

    def _no_gap(self) -> str:
        count, spread = len(self.exponents), float(self.exponents[0] - self.exponents[-1])
        if self.gap == "absent":
            agree = f"all {count:,} exponents agree to {max(spread, 1e-15):.1g}"
            return f"no gap: {agree}, so Theorem 4's collapse does not happen"
        error = "" if math.isnan(self.spread_error) else f" ± {self.spread_error:.1g}"
        return (
            f"gap not resolved at this depth: λ_1 − λ_{count} = {spread:.1g}{error}, where Gaussian layers have "
            f"{_gaussian_spread(self.n, count):.1g}; raise depth{'' if count == self.n else ' or k'}"
        )


def _gaussian_spread(n: int, k: int) -> float:
    """λ_1 − λ_k of Gaussian layers of width n (Theorem 5)."""
    return float(digamma(n / 2) - digamma((n - k + 1) / 2)) / 2
