"""Figures of the page: ranks over depth, and drops of the full rank beside those of the partial ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beside.drops import KINDS
from beside.tables import title
from rankscope._base.style import COLOURS, TEXT_WIDTH

__all__ = ["depth_figure", "drops_figure"]

# as in the other figures of these networks; trained above untrained, which is wider and remains visible below it
WEIGHTS = {"trained": (COLOURS[0], "o"), "untrained": (COLOURS[1], "s")}
_LINES: dict[str, dict[str, Any]] = {
    "trained": {"lw": 0.9, "ms": 1.8, "zorder": 3},
    "untrained": {"lw": 1.7, "ms": 3.0, "zorder": 2},
}
DASHES = {"patch": "-", "sketch": (0, (4, 2))}
VERDICTS = {"holds": (COLOURS[0], 9), "open": (COLOURS[4], 9), "fails": (COLOURS[6], 22)}  # colour, area
WORDS = {"holds": "holds", "open": "open", "fails": "fails for certain"}
MARKERS = {"patch": "o", "sketch": "x"}
_SHORT = (("global_pool.", ""), ("blocks.", ""))
_MAIN = "paper"


def depth_figure(ranks: pd.DataFrame) -> Figure:
    """Above: the full rank with its bounds, and random layers. Below: the partial ranks at the same threshold."""
    read = ranks[(ranks["tolerance"] == _MAIN) & ranks["true_cut"]]
    names = list(dict.fromkeys(read["network"]))
    figure = Figure(figsize=(TEXT_WIDTH, 4.4), layout="constrained")
    axes = figure.subplots(2, len(names), sharey="row", sharex="col", squeeze=False)
    for (above, below), name in zip(axes.T, names, strict=True):
        part = read[read["network"] == name]
        above.set_title(title(str(name)))
        _full(above, part[part["columns"] == "full"])
        _partial(below, part)
        _layer_ticks(below, part)
    axes[0, 0].set_ylabel("full rank")
    axes[1, 0].set_ylabel("partial rank")
    axes[0, 0].set_yscale("log")
    axes[1, 0].set_ylim(bottom=0)
    labels = [f"{what}, {weights}" for what in ("full", *KINDS) for weights in WEIGHTS]
    _legend(figure, axes.ravel(), [*labels, "random layers, same widths"], 4)
    return figure


def _legend(figure: Figure, axes: Iterable[Axes], order: Sequence[str], columns: int) -> None:
    """One legend of what any of the axes shows, in this order: not every network is there trained and untrained."""
    entries: dict[str, Any] = {}
    for ax in axes:
        entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    shown = [label for label in order if label in entries]
    handles = [entries[label] for label in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=columns, handlelength=2.6)


def _full(ax: Axes, full: pd.DataFrame) -> None:
    for weights, (colour, marker) in WEIGHTS.items():
        at = full[full["weights"] == weights].groupby("depth")
        if len(at):
            x = np.array(list(at.groups)) + 1
            ax.fill_between(x, at["lower"].min(), at["upper"].max(), color=colour, alpha=0.16, linewidth=0)
            ax.plot(x, at["rank"].median(), color=colour, marker=marker, label=f"full, {weights}", **_LINES[weights])
    random = full.groupby("depth")["random"].first()
    ax.plot(random.index + 1, random, color=COLOURS[-1], ls=(0, (1, 1.2)), lw=1.4, label="random layers, same widths")


def _partial(ax: Axes, part: pd.DataFrame) -> None:
    for weights, (colour, marker) in WEIGHTS.items():
        for kind in KINDS:
            at = part[(part["weights"] == weights) & (part["columns"] == kind)].groupby("depth")
            if len(at):
                x = np.array(list(at.groups)) + 1
                ax.fill_between(x, at["lower"].min(), at["upper"].max(), color=colour, alpha=0.12, linewidth=0)
                ax.plot(
                    x, at["rank"].median(), color=colour, ls=DASHES[kind], marker=marker,
                    label=f"{kind}, {weights}", **_LINES[weights],
                )  # fmt: skip


def _layer_ticks(ax: Axes, part: pd.DataFrame) -> None:
    layers = part.drop_duplicates("depth").sort_values("depth")
    names = [str(name) for name in layers["layer"]]
    for long, short in _SHORT:
        names = [name.replace(long, short) for name in names]
    ticks = np.unique(np.linspace(0, len(names) - 1, 6).round().astype(int))
    at = layers["depth"].to_numpy()[ticks] + 1
    ax.set_xticks(at, np.asarray(names)[ticks], rotation=60, ha="right", rotation_mode="anchor")


def drops_figure(pairs: pd.DataFrame) -> Figure:
    """Every pair of cut points between which the partial rank falls; Lemma 2 allows no point above the diagonal."""
    read = pairs[(pairs["tolerance"] == _MAIN) & (pairs["partial"] > 0)]
    names = list(dict.fromkeys(pairs["network"]))
    figure = Figure(figsize=(TEXT_WIDTH, 4.4), layout="constrained")
    axes = figure.subplots(len(WEIGHTS), len(names), sharex=True, sharey=True, squeeze=False)
    most = float(max(read["full"].max(), read["partial"].max())) if len(read) else 1.0
    for (row, weights), (column, name) in product(enumerate(reversed(WEIGHTS)), enumerate(names)):
        ax, part = axes[row, column], read[(read["network"] == name) & (read["weights"] == weights)]
        ax.set_title(f"{title(str(name))}, {weights}")
        if len(part):
            ax.plot([1, most], [1, most], color="0.5", lw=0.8)
        else:
            ax.text(0.5, 0.5, "not measured yet", transform=ax.transAxes, ha="center", va="center", color="0.45")
        for (verdict, (colour, size)), (kind, marker) in product(VERDICTS.items(), MARKERS.items()):
            of_kind = part[(part["verdict"] == verdict) & (part["columns"] == kind)]
            if len(of_kind):
                ax.scatter(
                    of_kind["full"], of_kind["partial"], s=size, marker=marker, linewidths=0.8,
                    facecolors=colour if marker == "x" else "none", edgecolors=None if marker == "x" else colour,
                    label=f"{kind}: bound {WORDS[verdict]}", zorder=3 if verdict == "fails" else 2,
                )  # fmt: skip
        ax.set_xscale("symlog", linthresh=1, linscale=0.6)  # a numerical rank may rise
        ax.set_yscale("log")
        ax.set_xticks([-100, 0, 100, 10_000])
        ax.minorticks_off()
    if len(read):
        axes[0, 0].set_ylim(0.7, 2 * read["partial"].max())
    for ax in axes[-1]:
        ax.set_xlabel("drop of the full rank")
    for ax in axes[:, 0]:
        ax.set_ylabel("drop of the partial rank")
    _legend(figure, axes.ravel(), [f"{kind}: bound {word}" for kind in KINDS for word in WORDS.values()], len(WORDS))
    return figure
