"""Fig. 3 of the paper: what each component does to feature dimension and Jacobian rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.errors import UsageError
from rankscope._base.style import (
    COLOURS,
    COLUMN_WIDTH,
    RANDOM_GREY,
    TEXT_WIDTH,
    figure_style,
    new_axes,
    new_figure,
    new_panels,
    plain_text,
    whole_ticks,
)
from rankscope.views.probes import ProbesView, RemediesView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_probes", "plot_remedies", "remedies_figure"]

_BARS = (
    ("PCA dimension before", "dimension_before", COLOURS[2], 0.45),
    ("PCA dimension after", "dimension_after", COLOURS[2], 1.0),
    ("Jacobian rank before", "rank_before", RANDOM_GREY, 0.45),
    ("Jacobian rank after", "rank_after", RANDOM_GREY, 1.0),
)


def plot_probes(found: ProbesView, *, ax: Axes | None = None) -> Axes:
    """Grouped horizontal bars: PCA dimension and Jacobian rank, before (pale) and after (full colour).

    Horizontal, because seventeen names in a column's width would have to stand on end. The dashed line is the sample
    limit: no PCA dimension can pass it. Whiskers are bounds, where rounding leaves any doubt.
    """
    results = found.rows
    with figure_style():
        if ax is None:
            ax = new_axes(COLUMN_WIDTH, 0.75 + 0.32 * max(len(results), 3))
        y = np.arange(len(results), dtype=float)
        for place, (label, attribute, colour, alpha) in enumerate(_BARS):
            estimates = [getattr(r, attribute) for r in results]
            values = np.array([e.value for e in estimates], dtype=float)
            where = y + (place - 1.5) * 0.2
            ax.barh(where, values, height=0.19, color=colour, alpha=alpha, label=label, linewidth=0)
            low = np.array([e.value - e.lower if e.certified else 0 for e in estimates], dtype=float)
            high = np.array([e.upper - e.value if e.certified else 0 for e in estimates], dtype=float)
            doubtful = (low + high) > 0
            if doubtful.any():
                ax.errorbar(
                    values[doubtful],
                    where[doubtful],
                    xerr=[low[doubtful], high[doubtful]],
                    fmt="none",
                    ecolor="#000000",
                    elinewidth=0.7,
                    capsize=1.5,
                )
        limit = found.sample_limit
        ax.axvline(limit, color="#000000", linestyle=(0, (4, 3)), linewidth=0.7, label=f"sample limit {limit:,}")
        ax.set_yticks(y, [plain_text(r.label) for r in results])
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(results) - 0.4, -0.6)
        ax.set_xlim(left=0)
        ax.set_xlabel(f"dimensions (tolerance: {found.tolerance})")
        handles, labels = ax.get_legend_handles_labels()
        order = [labels.index(bar[0]) for bar in _BARS]
        order[2:2] = [i for i in range(len(labels)) if i not in order]  # the limit below the dimensions it limits
        ax.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="lower center",
            bbox_to_anchor=(0.4, 1.0),
            ncols=2,
            borderaxespad=0.3,
            columnspacing=1.0,
        )
    return ax


def plot_remedies(result: RemediesView, *, ax: Axes | None = None, quantity: str = "rank") -> Axes:
    """One line per remedy over depth: median over the seeds, the range as a band; quantity 'rank' or 'dimension'."""
    if quantity not in ("rank", "dimension"):
        raise UsageError(f"quantity is {quantity!r}; draw 'rank' or 'dimension'")
    with figure_style():
        own = ax is None
        if ax is None:
            ax = new_axes(COLUMN_WIDTH, 3.1)
        _draw_remedies(result, ax, quantity)
        if own:
            ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, columnspacing=1.0)
    return ax


def remedies_figure(result: RemediesView) -> Any:
    """Jacobian rank and feature dimension side by side under one legend, as wide as a page's text; an array of Axes."""
    with figure_style():
        figure = new_figure(TEXT_WIDTH, 2.7)
        axes = new_panels(figure, 1, 2)[0]
        for ax, quantity in zip(axes, ("rank", "dimension"), strict=True):
            _draw_remedies(result, ax, quantity)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=7, columnspacing=1.0)
    return axes


def _draw_remedies(result: RemediesView, ax: Axes, quantity: str) -> None:
    depth = len(result.depths)
    every = max(1, depth // 8)
    for i, curve in enumerate(result.curves):
        values = curve.ranks if quantity == "rank" else curve.dimensions
        colour, first = COLOURS[(i - 1) % len(COLOURS)], (i * every) // max(len(result.curves), 1)
        # black for the first, the chain without a remedy; markers are staggered, since lines may lie on one another
        ax.plot(
            result.depths,
            np.median(values, axis=0),
            color=colour,
            marker="os^vDP*"[i % 7],
            markevery=(first, every),
            label=plain_text(curve.label),
            zorder=3,
            clip_on=False,
        )
        if len(values) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            ax.fill_between(result.depths, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel("layers")
    ax.set_ylabel(f"Jacobian rank (tolerance: {result.tolerance})" if quantity == "rank" else "PCA dimension")
    ax.set_xlim(1, max(depth, 2))
    whole_ticks(ax)
    ax.set_ylim(0, ax.get_ylim()[1])
