"""Numbers by layer and checkpoint as figures: a heat map, and one curve per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankscope._base.style import COLOURS, TEXT_WIDTH, figure_style, new_axes
from rankscope.views.layer_labels import layer_labels, named_places
from rankscope.views.watch_text import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_heat_map", "plot_step_curves"]

_TICKS = 12
_MARKS = "osD^vPX"
_MAP = "cividis"  # even to colour-blind readers, and in print
_UNKNOWN = "#bbbbbb"


def plot_heat_map(
    values: NDArray[np.float64],
    layers: Sequence[str],
    steps: Sequence[int],
    metric: str,
    unit: str,
    *,
    ax: Axes | None = None,
) -> Axes:
    """``values`` (layers, checkpoints) as colours, one column per checkpoint; grey where a layer has no number."""
    from matplotlib import colormaps

    with figure_style():
        named = named_places(len(layers))
        ax = new_axes(TEXT_WIDTH, max(1.6, 0.145 * len(named) + 0.8)) if ax is None else ax
        # the colour belongs to the map, since a page takes the ground of the axes away
        shades = colormaps[_MAP].with_extremes(bad=_UNKNOWN)
        image = ax.imshow(np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", cmap=shades)
        places = list(range(0, len(steps), max(1, -(-len(steps) // _TICKS))))
        ax.set_xticks(places, [f"{steps[i]:,}" for i in places])
        labels = layer_labels(layers)
        ax.set_yticks(named, [labels[i] for i in named])
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.set_xlabel(f"checkpoint ({unit})")
        ax.set_ylabel("layer")
        ax.figure.colorbar(image, ax=ax, label=metric_name(metric), pad=0.01)
    return ax


def plot_step_curves(
    values: NDArray[np.float64],
    layers: Sequence[str],
    steps: Sequence[int],
    metric: str,
    unit: str,
    *,
    ax: Axes | None = None,
) -> Axes:
    """One curve per layer over the steps; of many layers the shade is the depth, and some have a name."""
    from matplotlib import colormaps

    with figure_style():
        ax = new_axes(TEXT_WIDTH, 2.6) if ax is None else ax
        few = len(layers) <= len(COLOURS)
        # its ends vanish on a dark and on a light ground
        shades = colormaps[_MAP](np.linspace(0.3, 0.85, max(len(layers), 2)))
        named = set(np.linspace(0, len(layers) - 1, min(len(layers), len(COLOURS))).round().astype(int).tolist())
        for row, label in enumerate(layer_labels(layers)):
            colour, shown = COLOURS[row] if few else shades[row], label if row in named else None
            ax.plot(steps, values[row], marker=_MARKS[row % len(_MARKS)], color=colour, label=shown, markersize=3)
        if np.nanmin(values, initial=0.0) >= 0:
            ax.set_ylim(bottom=0)
        ax.set_xlabel(unit)
        ax.set_ylabel(metric_name(metric))
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
