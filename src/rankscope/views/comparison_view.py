"""Several runs beside each other as text for the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.facts import Fact
from rankscope._base.style import COLOURS, figure_style, legend_above, plain_text
from rankscope._base.text import one_line
from rankscope.views.layer_curves import APART, curve_look, layer_axes
from rankscope.views.layer_labels import name_layers
from rankscope.views.phrases import in_columns
from rankscope.views.sentences import note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison_text", "plot_comparison"]

_LABEL = 32  # characters of a run's name in the legend


def comparison_text(rows: Sequence[dict[str, Any]], labels: Sequence[str], metric: str, facts: Sequence[Fact]) -> str:
    """What differs first, then one line per layer: a value for each run, and the difference from the first run."""
    head = ["layer", *map(one_line, labels), *(f"{one_line(label)} − {one_line(labels[0])}" for label in labels[1:])]
    body = []
    for row in rows:
        differences = [_difference(row, run) for run in range(1, len(labels))]
        body.append([one_line(row["layer"]), *map(_value, row["values"]), *differences])
    return "\n".join([*map(note, facts), metric, *in_columns([head, *body])])


def _value(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _difference(row: dict[str, Any], run: int) -> str:
    mean, low, high = (row[name][run] for name in ("paired", "paired_low", "paired_high"))
    if not np.isnan(mean):
        return f"{mean:+,.1f} [{low:+,.1f}, {high:+,.1f}]"
    plain = row["values"][run] - row["values"][0]
    return "–" if np.isnan(plain) else f"{plain:+,.4g}"


def plot_comparison(
    rows: Sequence[dict[str, Any]], labels: Sequence[str], metric: str, *, ax: Axes | None = None
) -> Axes:
    """One line per run over the matched layers, with certified bounds as whiskers.

    Lines become thinner, their markers open and a little to the right, so that equal runs are seen.
    """
    with figure_style():
        if ax is None:
            ax = layer_axes(len(rows))
        lines = []
        for run, label in enumerate(labels):
            values, lower, upper = (
                np.array([row[name][run] for row in rows], dtype=float) for name in ("values", "lower", "upper")
            )
            colour = COLOURS[run % len(COLOURS)]
            x = np.arange(len(rows)) + APART * min(run, 3)
            lines += ax.plot(x, values, label=plain_text(label, _LABEL), **curve_look(run, colour))
            known = ~np.isnan(lower) & ~np.isnan(values)
            if known.any():
                error = np.clip([values - lower, upper - values], 0, None)[:, known]
                ax.errorbar(x[known], values[known], yerr=error, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2)
        name_layers(ax, [row["layer"] for row in rows])
        ax.set_ylabel(metric.replace("_", " "))
        ax.set_ylim(bottom=0)
        legend_above(ax, lines)
    return ax
