"""The regularisation path of one class, as a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope._base.records import Record
from rankscope._base.text import one_line
from rankscope.views.deficit_figure import draw_path
from rankscope.views.phrases import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RegularisationPath"]


@dataclass(frozen=True, eq=False, repr=False)
class RegularisationPath(Record):
    """Exact solutions of one class at falling η. Arrays have one entry an η; ``coefficients`` is (len(eta), c)."""

    derived: ClassVar[tuple[str, ...]] = ("n_dependencies",)

    index: int
    name: str
    eta: NDArray[np.float64]
    eta_max: float
    coefficients: NDArray[np.float64]
    r2: NDArray[np.float64]
    r2_held_out: NDArray[np.float64]
    duality_gap: NDArray[np.float64]
    accuracy_replaced: NDArray[np.float64]
    positive_accuracy_replaced: NDArray[np.float64]

    @property
    def n_dependencies(self) -> NDArray[np.int64]:
        """Number of classes with a non-zero coefficient at each η."""
        return np.count_nonzero(self.coefficients, axis=1)

    def table(self) -> pd.DataFrame:
        """One row an η."""
        return pd.DataFrame(
            {
                "eta": self.eta,
                "eta_over_eta_max": self._share,
                "n_dependencies": self.n_dependencies,
                "r2": self.r2,
                "r2_held_out": self.r2_held_out,
                "duality_gap": self.duality_gap,
                "accuracy_replaced": self.accuracy_replaced,
                "positive_accuracy_replaced": self.positive_accuracy_replaced,
            }
        )

    def plot(self) -> Axes:
        """R², held-out R² and the accuracies over η/η_max, with the number of other classes used."""
        lines = [
            ("R²", self.r2),
            ("R² held out", self.r2_held_out),
            ("accuracy, all", self.accuracy_replaced),
            ("accuracy, class", self.positive_accuracy_replaced),
        ]
        return draw_path(self._share, lines, self.n_dependencies, self.name)

    @property
    def _share(self) -> NDArray[np.float64]:
        """η/η_max; infinite where nothing correlates at all."""
        return self.eta / self.eta_max if self.eta_max else np.full_like(self.eta, np.inf)

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        head = f"Class {one_line(self.name)}: {counted(len(self.eta), 'value')} of eta"
        return f"{head}\n{self.table().to_string(index=False)}"
