"""A count for each name, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankscope._base.style import COLOURS, TEXT_WIDTH, figure_style, new_axes, plain_text, title_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bars"]

_LEVEL = 6  # so many short names fit beside each other


def plot_bars(
    names: Sequence[str],
    values: Sequence[float],
    *,
    quantity: str,
    title: str,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """One bar a name; ``log`` for counts of very different size."""
    with figure_style():
        ax = new_axes(max(3.35, min(TEXT_WIDTH, 0.24 * len(names) + 1.4)), 2.7) if ax is None else ax
        places = np.arange(len(values))
        ax.bar(places, values, color=COLOURS[0], width=0.7, linewidth=0)
        shown = [plain_text(name) for name in names]
        if len(names) <= _LEVEL and max(map(len, shown), default=0) <= 12:
            ax.set_xticks(places, shown)
        else:
            ax.set_xticks(places, shown, rotation=60, ha="right", rotation_mode="anchor")
        if log and any(value > 0 for value in values):
            ax.set_yscale("log")
        ax.set_ylabel(quantity)
        title_above(ax, title)
    return ax
