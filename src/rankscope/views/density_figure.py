"""A cumulative spectrum known within bounds, as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankscope._base.style import COLOURS, figure_style, new_axes, title_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_density"]


def plot_density(
    rtol: NDArray[np.float64], counts: NDArray[np.float64], *, size: int, title: str, ax: Axes | None = None
) -> Axes:
    """``counts`` has the columns value, lower and upper for each relative threshold."""
    with figure_style():
        ax = new_axes() if ax is None else ax
        ax.fill_between(rtol, counts[:, 1], counts[:, 2], color=COLOURS[0], alpha=0.25, linewidth=0, label="bounds")
        ax.plot(rtol, counts[:, 0], color=COLOURS[0], label="estimate", zorder=3)
        ax.set_xscale("log")
        ax.invert_xaxis()
        ax.set_ylim(0, max(size, 1) * 1.03)
        ax.set_xlabel("threshold τ/σ₁")
        ax.set_ylabel("singular values ≥ τ")
        title_above(ax, title)
        ax.legend()
    return ax
