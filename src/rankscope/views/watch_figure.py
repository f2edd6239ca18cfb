"""Numbers by layer and checkpoint as figures: a heat map, and one curve per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankscope._base.style import TEXT_WIDTH, figure_style, legend_above, new_axes, points_across
from rankscope.views.layer_labels import layer_labels, named_places
from rankscope.views.watch_text import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heat_map_height", "plot_heat_map", "plot_step_curves"]

_TICKS, _CURVES = 12, 7  # checkpoints and layers with a name
_MARKS = "osD^vPX"
_PHONE = 260  # points: narrower axes have room for short names and few ticks
_MAP = "cividis"  # even to colour-blind readers, and in print
_UNKNOWN = "#bbbbbb"


def heat_map_height(count: int) -> float:
    """Inches that the names of so many layers need beside one another's."""
    return max(1.6, 0.094 * len(named_places(count)) + 0.6)


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
        ax = new_axes(TEXT_WIDTH, heat_map_height(len(layers))) if ax is None else ax
        # the colour belongs to the map, since a page takes the ground of the axes away
        shades = colormaps[_MAP].with_extremes(bad=_UNKNOWN)
        image = ax.imshow(np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", cmap=shades)
        wide = points_across(ax) > _PHONE
        places = list(range(0, len(steps), max(1, -(-len(steps) // (_TICKS if wide else 4)))))
        ax.set_xticks(places, [f"{steps[i]:,}" for i in places])
        labels = layer_labels(layers, 30 if wide else 16)
        ax.set_yticks(named, [labels[i] for i in named], fontsize=7 if len(named) < 30 else 6.3)
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
    """One curve per layer over the steps; the shade is the depth, and of many layers some have a name."""
    from matplotlib import colormaps

    with figure_style():
        ax = new_axes(TEXT_WIDTH, 2.6) if ax is None else ax
        # the shade is the depth, since colours of the palette mean kinds of networks; the map's ends vanish on a dark
        # and on a light ground
        shades = colormaps[_MAP](np.linspace(0.3, 0.85, max(len(layers), 2)))
        most = min(len(layers), _CURVES if points_across(ax) > _PHONE else 4)
        named = set(np.linspace(0, len(layers) - 1, most).round().astype(int).tolist())
        lines = []
        for row, label in enumerate(layer_labels(layers)):
            mark, shown = _MARKS[row % len(_MARKS)], label if row in named else None
            (line,) = ax.plot(steps, values[row], marker=mark, color=shades[row], label=shown, markersize=3)
            lines += [line] if row in named else []
        if np.nanmin(values, initial=0.0) >= 0:
            ax.set_ylim(bottom=0)
        ax.set_xlabel(unit)
        ax.set_ylabel(metric_name(metric))
        legend_above(ax, lines)
    return ax
