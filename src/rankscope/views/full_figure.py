"""The rank of the full Jacobian over the layers, with the band of its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankscope._base.style import COLOURS, figure_style, new_axes, plain_text
from rankscope.views.full_text import FullRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_full"]


def plot_full(rows: Sequence[FullRow], *, title: str, ax: Axes | None = None) -> Axes:
    """The line is the largest rank of any image; the band goes from the smallest lower to the largest upper bound."""
    names = list(dict.fromkeys(row.layer for row in rows))
    of = [[row for row in rows if row.layer == name] for name in names]
    value = np.array([max(row.value for row in part) for part in of])
    lower = np.array([min(row.lower for row in part) for part in of])
    upper = np.array([max(row.upper for row in part) for part in of])
    place = np.arange(len(names))
    with figure_style():
        ax = new_axes() if ax is None else ax
        ax.fill_between(place, lower, upper, color=COLOURS[0], alpha=0.25, linewidth=0, label="bounds")
        ax.plot(place, value, color=COLOURS[0], marker="o", label="rank", zorder=3)
        ax.set_xticks(place, [plain_text(name, 30) for name in names], rotation=90)
        ax.set_ylim(0, max(int(upper.max()), 1) * 1.03)
        ax.set_xlabel("layer")
        ax.set_ylabel("rank of the full Jacobian")
        ax.set_title(plain_text(title, 60), loc="left")
        ax.legend()
    return ax
