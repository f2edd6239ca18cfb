"""Exponents, singular values and predictions of the theory as figures: numbers over an index or over depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankscope._base.style import COLOURS, figure_style, new_axes, plain_text, title_above, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_depths", "plot_spectrum"]

_FEW = 40  # values that are marked one by one


def plot_spectrum(
    values: NDArray[np.float64],
    *,
    label: str,
    title: str,
    errors: NDArray[np.float64] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One value for each index k, with standard errors as whiskers; what is not finite is left out."""
    k = np.arange(1, len(values) + 1)
    shown = np.isfinite(values)
    with figure_style():
        ax = new_axes() if ax is None else ax
        marker = "o" if len(values) <= _FEW else None
        ax.plot(k[shown], values[shown], color=COLOURS[0], marker=marker, clip_on=False, zorder=3)
        if errors is not None and (drawn := shown & np.isfinite(errors) & (errors > 0)).any():
            ax.errorbar(k[drawn], values[drawn], yerr=errors[drawn], fmt="none", ecolor=COLOURS[0], capsize=2)
        ax.set_xlim(0.5, max(len(values), 1) + 0.5)
        whole_ticks(ax)
        ax.set_xlabel("index k")
        ax.set_ylabel(label)
        title_above(ax, title)
    return ax


def plot_depths(
    depths: NDArray[np.int64],
    laws: Mapping[str, NDArray[np.float64]],
    point: tuple[int, float],
    *,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Rank over depth by each law, and the one prediction as a point."""
    with figure_style():
        ax = new_axes() if ax is None else ax
        for number, (name, values) in enumerate(laws.items()):
            ax.plot(depths, values, color=COLOURS[number], label=plain_text(name), zorder=3)
        ax.plot(*point, marker="o", color="#000000", linestyle="none", label="prediction", zorder=4)
        if len(depths) > 1:
            ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("depth (layers)")
        ax.set_ylabel("predicted rank")
        title_above(ax, title)
        ax.legend()
    return ax
