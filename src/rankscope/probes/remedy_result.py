"""What the comparison of remedies leaves: a chain's profile for each, as a table, JSON and a figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankscope._base.errors import UsageError, nearest
from rankscope._base.records import ByValue, Record
from rankscope.spectra import Tolerance, ToleranceLike, as_tolerance
from rankscope.theory import ChainProfile
from rankscope.views.probe_figure import plot_remedies, remedies_figure
from rankscope.views.probe_text import remedies_text
from rankscope.views.probes import RemediesView, RemedyLine

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["SCHEMA_VERSION", "RemedyCurve", "RemedyResult"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class RemedyCurve(ByValue):
    """One remedy: its name, its label in figures, and the chains measured with it."""

    name: str
    label: str
    chain: ChainProfile

    @property
    def ranks(self) -> NDArray[np.float64]:
        """Numerical rank of the Jacobian, shape (seeds, depth)."""
        return self.chain.jacobian_ranks

    @property
    def dimensions(self) -> NDArray[np.float64]:
        """PCA dimension of the features, shape (seeds, depth)."""
        return self.chain.feature_dimensions

    @property
    def certain(self) -> bool:
        """Whether rounding in the spectra could change no rank of any seed at any depth."""
        tolerance = self.chain.tolerance
        return all(not step.jacobian.rank(tolerance).near for run in self.chain.runs for step in run.steps)


@dataclass(frozen=True, eq=False)
class RemedyResult(Record):
    """Remedies on one random chain. Prints as a table; iterates over its curves.

    Attributes
    ----------
    curves : tuple of RemedyCurve
    width, depth : int
        Dimension of the input (and units a layer, but for the remedy ``width``) and number of layers.
    activation : str or None
    width_factor : int
        Of the remedy ``width``.
    seconds : float
        Wall time.
    """

    curves: tuple[RemedyCurve, ...]
    width: int
    depth: int
    activation: str | None
    width_factor: int
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.curves)

    def __iter__(self) -> Iterator[RemedyCurve]:
        return iter(self.curves)

    def __getitem__(self, name: str) -> RemedyCurve:
        for curve in self.curves:
            if curve.name == name:
                return curve
        raise UsageError(f"the remedy {name!r} was not measured; {nearest(name, [c.name for c in self.curves])}")

    @property
    def depths(self) -> NDArray[np.int64]:
        """1 … depth."""
        return np.arange(1, self.depth + 1)

    @property
    def tolerance(self) -> Tolerance:
        """Of the Jacobian rank; the feature dimension always uses the paper's."""
        return self.curves[0].chain.tolerance

    @property
    def samples(self) -> int:
        """Inputs behind the feature dimension."""
        return self.curves[0].chain.samples

    @property
    def seeds(self) -> tuple[int, ...]:
        """One chain each."""
        return tuple(run.seed for run in self.curves[0].chain.runs)

    def with_tolerance(self, tolerance: ToleranceLike) -> RemedyResult:
        """The same Jacobian spectra read with another tolerance."""
        tol = as_tolerance(tolerance)
        return replace(self, curves=tuple(replace(c, chain=replace(c.chain, tolerance=tol)) for c in self.curves))

    def table(self) -> pd.DataFrame:
        """One row per remedy and depth: medians over the seeds, with the least and the largest."""
        import pandas as pd

        rows = []
        for curve in self.curves:
            ranks, dimensions = curve.ranks, curve.dimensions
            for k in range(self.depth):
                row: dict[str, Any] = {"remedy": curve.name, "depth": k + 1}
                for key, values in (("rank", ranks[:, k]), ("dimension", dimensions[:, k])):
                    row |= {key: float(np.median(values)), f"{key}_min": int(values.min())}
                    row |= {f"{key}_max": int(values.max())}
                rows.append(row)
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "probe_remedies",
            "width": self.width,
            "depth": self.depth,
            "activation": self.activation,
            "width_factor": self.width_factor,
            "samples": self.samples,
            "seeds": list(self.seeds),
            "tolerance": self.tolerance.to_dict(),
            "feature_tolerance": as_tolerance("paper").to_dict(),
            "dtype": self.curves[0].chain.dtype,
            "seconds": self.seconds,
            "provenance": dict(self.curves[0].chain.provenance),
            "remedies": [
                {
                    "name": c.name,
                    "label": c.label,
                    "units": c.chain.width,
                    "init": c.chain.init,
                    "residual": c.chain.residual,
                    "normalisation": c.chain.normalisation,
                    "certain": c.certain,
                    "jacobian_ranks": c.ranks.astype(int).tolist(),
                    "feature_dimensions": c.dimensions.astype(int).tolist(),
                }
                for c in self.curves
            ],
        }

    def plot(self, *, ax: Axes | None = None, quantity: str = "rank") -> Axes:
        """One line per remedy over depth; ``quantity`` "rank" (Jacobian) or "dimension" (features)."""
        return plot_remedies(self._view(), ax=ax, quantity=quantity)

    def side_by_side(self) -> Any:
        """Jacobian rank and feature dimension beside each other under one legend: an array of two Axes."""
        return remedies_figure(self._view())

    def __str__(self) -> str:
        return remedies_text(self._view())

    def _view(self) -> RemediesView:
        return RemediesView(
            curves=tuple(
                RemedyLine(c.label, c.ranks, c.dimensions, c.certain, c.chain.normalisation == "batchnorm")
                for c in self.curves
            ),
            depths=self.depths,
            width=self.width,
            activation=self.activation,
            seeds=len(self.seeds),
            seconds=self.seconds,
            tolerance=self.tolerance.name,
            samples=self.samples,
        )
