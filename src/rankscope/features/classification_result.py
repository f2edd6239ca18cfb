"""The record that ``classification_dimension`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope._base.errors import UsageError
from rankscope.features.truncated_head import TruncatedHead

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ClassificationDimension"]


@dataclass(frozen=True)
class FoldedHead:
    """What a truncated classifier is made of: axes (d × d), weights on them (d × c), offset (c,), mean taken off."""

    axes: torch.Tensor
    folded: torch.Tensor
    offset: torch.Tensor
    mean: torch.Tensor


@dataclass(frozen=True, eq=False)
class ClassificationDimension:
    """How many principal components of the final features classification needs (paper §3.3, Eq. 6, Table 1).

    Attributes
    ----------
    dimension : int
        Least k whose accuracy is at least ``retain`` × the full accuracy: the first crossing.
    ambient : int
        Width d of the features.
    full_accuracy : float
        Top-1 accuracy (or score) of the untouched features, between 0 and 1.
    curve : numpy.ndarray
        Top-1 accuracy (or score) after projecting on k = 1 … len(curve) components; shorter than d where the work
        stopped at the crossing.
    top5 : numpy.ndarray or None
        The same for top-5; None below 10 classes and for a scorer.
    interval : tuple of int or None
        95 % bootstrap interval of ``dimension`` over the samples the accuracy is measured on (the axes are kept as
        they are); None without bootstrap.
    retain, projection, accuracy_kind, samples, classes
        The settings and sizes the number belongs to.
    variance_kept : float
        Share of the features' variance in the first ``dimension`` components.
    notes, cautions : tuple of str
        What was found besides; ``cautions`` are those of the notes that are to be read before the number.
    head_error : float or None
        Largest difference between the head's logits and the stored ones, as a share of the largest; None unchecked.
    """

    dimension: int
    ambient: int
    full_accuracy: float
    curve: NDArray[np.float64]
    top5: NDArray[np.float64] | None
    full_top5: float | None
    interval: tuple[int, int] | None
    retain: float
    projection: str
    samples: int
    classes: int | None
    variance_kept: float
    head_error: float | None = None
    accuracy_kind: str = "overall"
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    folded: FoldedHead | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy at ``dimension``."""
        return float(self.curve[self.dimension - 1])

    def head(self, k: int | None = None) -> TruncatedHead:
        """The classifier on the top k components (default: ``dimension``) as a module: Linear d → k, Linear k → c.

        Raises
        ------
        UsageError
            k outside 1 … d, or a head that is not linear and so cannot be folded.
        """
        k = self.dimension if k is None else k
        if self.folded is None:
            raise UsageError("only a linear head can be folded with the projection; this result used a callable")
        if not 1 <= k <= self.ambient:
            raise UsageError(f"k is {k}; a truncated head keeps 1 to {self.ambient} components")
        axes, folded = self.folded.axes[:, :k], self.folded.folded[:k]
        # the module sees features as they come: the projected mean, where one was taken off, moves into the bias
        return TruncatedHead(axes, folded.T, self.folded.offset - self.folded.mean @ axes @ folded)

    def table(self) -> pd.DataFrame:
        """One row, as Table 1 of the paper with its uncertainty."""
        import pandas as pd

        low, high = self.interval or (None, None)
        row = {
            "classification_dimension": self.dimension,
            "low": low,
            "high": high,
            "ambient": self.ambient,
            "share": self.dimension / self.ambient,
            "accuracy": self.accuracy,
            "full_accuracy": self.full_accuracy,
            "retain": self.retain,
            "projection": self.projection,
            "accuracy_kind": self.accuracy_kind,
            "samples": self.samples,
        }
        return pd.DataFrame([row])

    def curve_table(self) -> pd.DataFrame:
        """One row per k: k, top-1 accuracy, its share of the full accuracy, and top-5 where there is one."""
        import pandas as pd

        columns = {"k": np.arange(1, len(self.curve) + 1), "top1": self.curve, "kept": self.curve / self.full_accuracy}
        if self.top5 is not None:
            columns["top5"] = self.top5
        return pd.DataFrame(columns)

    def plot(self, *, label: str | None = None, ax: Axes | None = None) -> Axes:
        """Accuracy over k as Fig. 2 of the paper: a square-root axis of k, the crossing marked."""
        from rankscope.features.figure import plot_curves

        return plot_curves([(label or "top-1", self)], ax=ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the folded head is left out."""
        return {
            "schema_version": 1,
            "kind": "classification_dimension",
            "dimension": self.dimension,
            "interval": None if self.interval is None else list(self.interval),
            "ambient": self.ambient,
            "accuracy": self.accuracy,
            "full_accuracy": self.full_accuracy,
            "full_top5": self.full_top5,
            "retain": self.retain,
            "projection": self.projection,
            "accuracy_kind": self.accuracy_kind,
            "samples": self.samples,
            "classes": self.classes,
            "variance_kept": self.variance_kept,
            "head_error": self.head_error,
            "notes": list(self.notes),
            "cautions": list(self.cautions),
            "curve": self.curve.tolist(),
            "top5": None if self.top5 is None else self.top5.tolist(),
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        bounds = f"{self.interval[0]} … {self.interval[1]} (95 % bootstrap)" if self.interval else "not estimated"
        rows = [
            ("classification dimension", f"{self.dimension} of {self.ambient}"),
            ("interval", bounds),
            (
                "accuracy kept" if self.accuracy_kind == "overall" else "balanced accuracy kept",
                f"{self.accuracy:.4f} of {self.full_accuracy:.4f} (≥ {self.retain:g} ×)",
            ),
            ("variance kept", f"{self.variance_kept:.1%}"),
            ("projection", self.projection),
            ("samples", f"{self.samples:,}" + (f", {self.classes:,} classes" if self.classes else "")),
        ]
        if self.head_error is not None:
            rows.append(("head against stored logits", f"differs by {self.head_error:.1e} of the largest logit"))
        rows += [("note", note) for note in self.notes if note not in self.cautions]
        width = max(len(name) for name, _ in rows)
        first = [f"Caution: {caution}." for caution in self.cautions]
        return "\n".join([*first, *(f"{name:<{width}}  {value}" for name, value in rows)])
