"""Figures of feature space: accuracy over components (Fig. 2 of the paper) and spectra over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rankscope._base.style import COLOURS, RANDOM_GREY, TRAINED, new_axes, plain_text
from rankscope.views.layer_labels import name_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "plot_curves", "plot_layers"]

# lines differ in dash as well as in colour
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_WIDTH = 3.4  # inches: one column of a two-column paper


class Curve(Protocol):
    """What a curve of accuracies over components is drawn from; ``classes`` is None for scores."""

    @property
    def dimension(self) -> int: ...
    @property
    def curve(self) -> NDArray[np.float64]: ...
    @property
    def top5(self) -> NDArray[np.float64] | None: ...
    @property
    def interval(self) -> tuple[int, int] | None: ...
    @property
    def keep(self) -> float: ...
    @property
    def full_accuracy(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def classes(self) -> int | None: ...


def _axes(ax: Axes | None, height: float) -> Any:
    if ax is not None:
        return ax
    return new_axes(_WIDTH, height, dpi=200)


def _tidy(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7)
    ax.grid(axis="y", linewidth=0.4, alpha=0.4)


def plot_curves(results: Sequence[tuple[str, Curve]], *, ax: Axes | None = None) -> Axes:
    """Accuracy over the number of components for one or more results, on a square-root axis; crossings marked."""
    ax = _axes(ax, 2.5)
    scored = all(r.classes is None for _, r in results)
    unit = 1.0 if scored else 100.0
    for number, (label, result) in enumerate(results):
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
        k = np.arange(1, len(result.curve) + 1)
        ax.plot(k, unit * result.curve, color=colour, linestyle=dash, linewidth=1.4, label=plain_text(label))
        if result.top5 is not None and len(results) == 1:
            ax.plot(k, unit * result.top5, color=COLOURS[2], linestyle=_DASHES[1], linewidth=1.2, label="top-5")
        if result.interval and len(results) == 1:
            ax.axvspan(*result.interval, color=colour, alpha=0.15, linewidth=0)
        ax.plot([result.dimension], [unit * result.accuracy], "o", color=colour, markersize=4)
        # hung from the threshold, below which the dot never is: the dotted line stays clear of the number
        hung = unit * (result.keep * result.full_accuracy if len(results) == 1 else result.accuracy)
        ax.annotate(
            f"{result.dimension}",
            (result.dimension, hung),
            xytext=(5, -4),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color=colour,
        )
    if len(results) == 1:
        result = results[0][1]
        line = unit * result.keep * result.full_accuracy
        ax.axhline(line, color="#555555", linewidth=0.8, linestyle=":", label=f"{result.keep:g} × full")
    end = max(len(r.curve) for _, r in results)
    ax.set_xscale("function", functions=(lambda v: np.sqrt(np.clip(v, 0, None)), np.square))
    ax.set_xlim(0, end)
    ticks = [t for t in (1, 10, 50, 100, 200, 500, 1000, 2000, 4000, 8000) if t < 0.93 * end]
    ax.set_xticks(sorted({*[t for t in ticks if (t / end) ** 0.5 > 0.06], end}))
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel("principal components kept (square-root scale)", fontsize=8)
    ax.set_ylabel("score" if scored else "accuracy (%)", fontsize=8)
    ax.legend(fontsize=7, frameon=False, loc="lower right")
    _tidy(ax)
    return ax


def plot_layers(rows: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """PCA dimension, effective rank and participation ratio over depth on a logarithmic axis."""
    ax = _axes(ax, 3.0)
    names = [row["name"] for row in rows]
    x = np.arange(len(names))
    for number, (label, values) in enumerate(
        (
            ("width", [row["width"] for row in rows]),
            ("PCA dimension", [row["pca_dimension"] for row in rows]),
            ("effective rank", [row["effective_rank"] for row in rows]),
            ("participation ratio", [row["participation_ratio"] for row in rows]),
        )
    ):
        # wide dots are seen around a curve that reaches the width
        style: Any = (
            {"color": RANDOM_GREY, "linestyle": (0, (0.6, 0.9)), "linewidth": 3, "alpha": 0.7}
            if number == 0
            else {"color": (TRAINED, *COLOURS[2:])[number - 1], "marker": "os^"[number - 1], "linewidth": 1.2}
        )
        ax.plot(x, np.clip(np.array(values, dtype=float), 0.5, None), label=label, markersize=3.5, **style)
    limited = [i for i, row in enumerate(rows) if row["limited_by"] == "samples"]
    if limited:
        shown = [max(rows[i]["pca_dimension"], 0.5) for i in limited]
        ax.plot(limited, shown, "x", color="#000000", markersize=6, label="limited by samples")
    ax.set_yscale("log")
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    highest, lowest = max(row["width"] for row in rows), min(row["participation_ratio"] for row in rows)
    narrow = highest < 300 * max(lowest, 0.5)  # under two and a half decades, powers of ten alone are too few labels
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    name_layers(ax, names)
    ax.set_ylabel("dimensions", fontsize=8)
    ax.xaxis.label.set_fontsize(8)
    ax.legend(fontsize=6.5, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    _tidy(ax)
    return ax
