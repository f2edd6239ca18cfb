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

__all__ = ["Reading"]


@dataclass(frozen=True, eq=False)
class Reading:
    """A profile's spectra read with one tolerance.

    Arrays have shape (cut points, images). ``rank``, ``lower`` and ``upper`` are −1 and ``threshold`` and ``margin``
    are NaN where an image's Jacobian is not finite; ``lower`` and ``upper`` are the trivial 0 and min(rows, columns)
    where ``certified`` is false.
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
    def function_rank(self) -> tuple[int, ...]:
        """Largest rank over the images, one a cut point; 0 where none was measured."""
        return tuple(int(n) for n in self.rank.max(axis=1, initial=0))

    @cached_property
    def rises(self) -> dict[str, int]:
        """True cuts whose function rank exceeds the smallest before them, and by how much."""
        found: dict[str, int] = {}
        least: int | None = None
        for layer, rank in zip(self.layers, self.function_rank, strict=True):
            if not layer.true_cut or layer.uncalled:  # the images that go another way do not pass through it
                continue
            if least is not None and rank > least:
                found[layer.name] = rank - least
            least = rank if least is None else min(least, rank)
        return found

    @cached_property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """One mapping a cut point: sizes, rank over the images, bounds, soft ranks, flags."""
        return tuple(self._row(k) for k in range(len(self.layers)))

    def row(self, layer: Layer) -> dict[str, Any]:
        """That of one of the layers."""
        return next(row for one, row in zip(self.layers, self.rows, strict=True) if one is layer)

    def _row(self, k: int) -> dict[str, Any]:
        layer, seen = self.layers[k], self.rank[k] >= 0
        rank, lower, upper = self.rank[k][seen], self.lower[k][seen], self.upper[k][seen]
        certified = bool(seen.any()) and bool(self.certified[k][seen].all())
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
            # where no bound is known nothing is known of what lies near the threshold
            "near_threshold": int(np.max(np.where(self.certified[k][seen], upper - lower, 0), initial=0)),
            "certified": certified,
            "error_bound": _float(np.max, soft.error_bound[seen]),
            "zero_images": int(soft.zero[seen].sum()),
            "not_finite_images": int((~seen).sum()) - len(layer.uncalled),
            "uncalled_images": len(layer.uncalled),
            "rises_by": self.rises.get(layer.name, 0),
        }


def _int(reduce: Any, values: NDArray[Any]) -> int | None:
    return int(reduce(values)) if values.size else None


def _float(reduce: Any, values: NDArray[Any]) -> float | None:
    if not values.size:
        return None
    found = float(reduce(values))
    return found if np.isfinite(found) else None
