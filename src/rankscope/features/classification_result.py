"""The record that ``classification_dimension`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope._base.errors import UsageError
from rankscope._base.facts import Fact
from rankscope._base.records import ByValue, Record
from rankscope.features.truncated_head import TruncatedHead
from rankscope.views.feature_figure import plot_curves
from rankscope.views.feature_text import classification_text
from rankscope.views.noted import Noted
from rankscope.views.sentences import sentence

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ClassificationDimension"]


_Floats: TypeAlias = NDArray[np.floating[Any]]
_PRINTED = (
    "dimension", "ambient", "interval", "accuracy", "full_accuracy", "accuracy_kind", "keep", "variance_kept",
    "projection", "samples", "classes", "head_error",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FoldedHead(ByValue):
    """What a truncated classifier is made of: axes (d × d), weights on them (d × c), offset (c,), mean taken off.

    All in the dtype that was computed in, float32 or float64.
    """

    axes: _Floats
    folded: _Floats
    offset: _Floats
    mean: _Floats


@dataclass(frozen=True, eq=False, repr=False)
class ClassificationDimension(Noted, Record):
    """How many principal components of the final features classification needs (paper §3.3, Eq. 6, Table 1).

    Attributes
    ----------
    dimension : int
        Least k whose accuracy is at least ``keep`` × the full accuracy: the first crossing. 0 only where the search
        started there.
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
        95% bootstrap interval of ``dimension`` over the samples the accuracy is measured on (the axes are kept as
        they are); None without bootstrap.
    keep, projection, accuracy_kind, samples, classes
        The settings and sizes the number belongs to.
    variance_kept : float
        Share of the features' variance in the first ``dimension`` components.
    facts : tuple of Fact
        What was found besides; ``notes`` are their sentences, ``cautions`` those to be read before the number.
    without : float or None
        Accuracy (or score) with no component, where the search started at k = 0; else None.
    head_error : float or None
        Largest difference between the head's logits and the stored ones, as a share of the largest; None unchecked.
    """

    derived: ClassVar[tuple[str, ...]] = ("accuracy", "notes", "cautions")

    dimension: int
    ambient: int
    full_accuracy: float
    curve: NDArray[np.float64]
    top5: NDArray[np.float64] | None
    full_top5: float | None
    interval: tuple[int, int] | None
    keep: float
    projection: str
    samples: int
    classes: int | None
    variance_kept: float
    head_error: float | None = None
    accuracy_kind: str = "overall"
    facts: tuple[Fact, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    folded: FoldedHead | None = field(default=None, repr=False)
    without: float | None = None

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy at ``dimension``."""
        if self.dimension == 0 and self.without is not None:
            return self.without
        return float(self.curve[self.dimension - 1])

    def head(self, k: int | None = None) -> TruncatedHead:
        """The classifier on the top k components (default: ``dimension``) as a module: Linear d → k, Linear k → c.

        A ``dimension`` of 0 needs no classifier, only the one answer; give k.

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
        one = self.folded
        axes, folded = torch.tensor(one.axes[:, :k]), torch.tensor(one.folded[:k])
        # the module sees features as they come: the projected mean, where one was taken off, moves into the bias
        return TruncatedHead(axes, folded.T, torch.tensor(one.offset) - torch.tensor(one.mean) @ axes @ folded)

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
            "keep": self.keep,
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

    @property
    def cautions(self) -> tuple[str, ...]:
        """Those of the notes that are to be read before the number."""
        return tuple(sentence(fact) for fact in self.facts if fact.caution)

    def plot(self, *, label: str | None = None, ax: Axes | None = None) -> Axes:
        """Accuracy over k as Fig. 2 of the paper: a square-root axis of k, the crossing marked."""
        return plot_curves([(label or "top-1", self)], ax=ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the folded head is left out."""
        made = super().to_dict()
        del made["folded"]
        return made

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        return classification_text({name: getattr(self, name) for name in _PRINTED}, self.facts)
