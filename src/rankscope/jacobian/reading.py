"""A profile × a tolerance, read once: ranks, bounds and margins as arrays, and everything that is read off them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.jacobian.layer import Layer
from rankscope.jacobian.layer_reading import LayerReading
from rankscope.spectra import Tolerance
from rankscope.spectra.density import SpectralDensity

__all__ = ["Reading"]

_SIGNIFICANT = 3  # standard errors


@dataclass(frozen=True, eq=False)
class Reading:
    """A profile's spectra read with one tolerance.

    Arrays have shape (cut points, images). ``rank``, ``lower`` and ``upper`` are −1 and ``threshold`` and ``margin``
    are NaN where an image's Jacobian is not finite; ``lower`` and ``upper`` are the trivial 0 and min(rows, columns)
    where ``certified`` is false. ``standard_error`` and ``bracket`` are those of Lanczos probes, whose margin is NaN;
    both are 0 where all singular values are known.
    """

    layers: tuple[Layer, ...]
    tolerance: Tolerance

    @cached_property
    def one_size(self) -> bool:
        """Whether every cut point's Jacobians have one shape: samples of several lengths have several."""
        return all(len({s.shape for s in layer.spectra if s is not None}) < 2 for layer in self.layers)

    @cached_property
    def _each(self) -> tuple[LayerReading, ...]:
        return tuple(layer.reading(self.tolerance) for layer in self.layers)

    def _stack(self, name: str) -> Any:
        return np.stack([getattr(one, name) for one in self._each])

    @cached_property
    def rank(self) -> NDArray[np.int64]:
        """Singular values at or above the threshold."""
        return np.asarray(self._stack("rank"))

    @cached_property
    def lower(self) -> NDArray[np.int64]:
        """Certified lower bounds."""
        return np.asarray(self._stack("lower"))

    @cached_property
    def upper(self) -> NDArray[np.int64]:
        """Certified upper bounds."""
        return np.asarray(self._stack("upper"))

    @cached_property
    def threshold(self) -> NDArray[np.float64]:
        """τ, in the units of the singular values."""
        return np.asarray(self._stack("threshold"))

    @cached_property
    def margin(self) -> NDArray[np.float64]:
        """Relative distance |σ − τ|/τ to the nearest singular value."""
        return np.asarray(self._stack("margin"))

    @cached_property
    def certified(self) -> NDArray[np.bool_]:
        """Whether an error bound is known."""
        return np.asarray(self._stack("certified"))

    @cached_property
    def standard_error(self) -> NDArray[np.float64]:
        """Of ``rank``, from the choice of Lanczos probes alone."""
        return np.asarray(self._stack("standard_error"))

    @cached_property
    def bracket(self) -> NDArray[np.float64]:
        """Width of the quadrature's bounds, as a share of min(rows, columns)."""
        return np.asarray(self._stack("bracket"))

    @cached_property
    def probed(self) -> NDArray[np.bool_]:
        """Where a rank is read off Lanczos probes."""
        return np.array([[isinstance(s, SpectralDensity) for s in layer.spectra] for layer in self.layers])

    @cached_property
    def function_rank(self) -> tuple[int, ...]:
        """Largest rank over the images, one per cut point; 0 where none was measured."""
        return tuple(int(n) for n in self.rank.max(axis=1, initial=0))

    @cached_property
    def rises(self) -> dict[str, int]:
        """True cuts whose function rank exceeds the smallest before them, and by how much.

        Ranks that are read off probes count as a rise where it exceeds three standard errors and half the bracket.
        """
        found: dict[str, int] = {}
        least: tuple[int, float] | None = None
        for k, (layer, rank) in enumerate(zip(self.layers, self.function_rank, strict=True)):
            if not layer.true_cut or layer.uncalled:  # the images that go another way do not pass through it
                continue
            doubt = self.doubt(k)
            if least is not None and rank - least[0] > np.hypot(doubt, least[1]):
                found[layer.name] = rank - least[0]
            least = (rank, doubt) if least is None else min(least, (rank, doubt))
        return found

    def doubt(self, k: int) -> float:
        """How far an estimated function rank may be off by chance and by its quadrature; 0 of exact ones."""
        if not self.probed[k].any():
            return 0.0
        size = min(self.layers[k].rows, self.layers[k].columns)
        most = int(self.rank[k].argmax())
        return float(_SIGNIFICANT * np.nan_to_num(self.standard_error[k, most]) + self.bracket[k, most] * size / 2)

    @cached_property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """One mapping per cut point: sizes, rank over the images, bounds, soft ranks, flags."""
        return tuple(self._row(k) for k in range(len(self.layers)))

    def row(self, layer: Layer) -> dict[str, Any]:
        """That of one of the layers."""
        return next(row for one, row in zip(self.layers, self.rows, strict=True) if one is layer)

    def _row(self, k: int) -> dict[str, Any]:
        layer, seen = self.layers[k], self.rank[k] >= 0
        rank, lower, upper = self.rank[k][seen], self.lower[k][seen], self.upper[k][seen]
        certified = bool(seen.any()) and bool(self.certified[k][seen].all())
        known = (self.certified & ~self.probed)[k][seen]
        soft = layer.soft
        rows, columns = layer.least
        own = {} if self.one_size else {"least_rows": rows, "least_columns": columns, "room": list(layer.room)}
        return {
            "name": layer.name,
            "rows": layer.rows,
            "columns": layer.columns,
            **own,
            "rank": {
                "min": _int(np.min, rank),
                "median": _float(np.median, rank),
                "max": _int(np.max, rank),
                "lower": _int(np.min, lower),
                "upper": _int(np.max, upper),
            },
            "function_rank": {
                "value": _int(np.max, rank),
                "lower": _int(np.max, lower),
                "upper": _int(np.max, upper),
            },
            "true_cut": layer.true_cut,
            "images": int(seen.sum()),
            "effective_rank": _float(np.median, soft.effective_rank[seen]),
            "stable_rank": _float(np.median, soft.stable_rank[seen]),
            "threshold": _float(np.median, self.threshold[k][seen]),
            "margin": _float(np.min, self.margin[k][seen]),
            # where no bound is known nothing is known of what lies near the threshold; bounds of probes hold more
            "near_threshold": int(np.max(np.where(known, upper - lower, 0), initial=0)),
            "certified": certified,
            "error_bound": _float(np.max, soft.error_bound[seen]),
            "zero_images": int(soft.zero[seen].sum()),
            "not_finite_images": int((~seen).sum()) - len(layer.uncalled),
            "uncalled_images": len(layer.uncalled),
            "rises_by": self.rises.get(layer.name, 0),
            **(self._probes(k) if self.probed.any() else {}),
        }

    def _probes(self, k: int) -> dict[str, Any]:
        """What belongs to the function rank where probes were used: that of the image with the largest rank."""
        if not self.probed[k].any():
            return {"method": "exact", "standard_error": None, "bracket": None}
        most = int(self.rank[k].argmax())
        error = float(self.standard_error[k, most])
        return {
            "method": "Lanczos",
            "standard_error": error if np.isfinite(error) else None,
            "bracket": float(self.bracket[k, most]),
        }


def _int(reduce: Any, values: NDArray[Any]) -> int | None:
    return int(reduce(values)) if values.size else None


def _float(reduce: Any, values: NDArray[Any]) -> float | None:
    if not values.size:
        return None
    found = float(reduce(values))
    return found if np.isfinite(found) else None
