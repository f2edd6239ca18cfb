"""Curves over the layers of several networks or runs in the same axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankscope._base.style import COLUMN_WIDTH, TEXT_WIDTH, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["APART", "curve_look", "layer_axes"]

APART = 0.12  # of the distance of two layers: how far a further curve is to the right


def layer_axes(count: int) -> Axes:
    """Axes with room for the names of ``count`` layers."""
    return new_axes(max(COLUMN_WIDTH, min(TEXT_WIDTH, 0.24 * count + 1.4)), 3.0)


def curve_look(number: int, colour: str) -> dict[str, Any]:
    """Of the curve with this number: further ones are thinner and their markers open, so that equal curves are seen.

    >>> curve_look(0, "#0072B2")["markerfacecolor"], curve_look(1, "#D55E00")["markerfacecolor"]
    ('#0072B2', 'none')
    """
    return {
        "color": colour,
        "marker": "osD^v"[number % 5],
        "zorder": 3 + 0.1 * number,
        "linewidth": max(1.6 - 0.5 * number, 0.8),
        "markersize": 3.5 + 1.3 * min(number, 2),
        "markerfacecolor": "none" if number else colour,
    }
