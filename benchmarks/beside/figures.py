"""Figures of the page: ranks over depth, and drops of the full rank beside those of the partial ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beside.drops import KINDS
from beside.tables import TITLES
from rankscope._base.style import COLOURS, TEXT_WIDTH

__all__ = ["depth_figure", "drops_figure"]

WEIGHTS = {"trained": (COLOURS[0], "o"), "untrained": (COLOURS[1], "s")}  # as in the other figures of these networks
DASHES = {"patch": "-", "sketch": (0, (4, 2))}
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
        above.set_title(TITLES.get(name, name))
        _full(above, part[part["columns"] == "full"])
        _partial(below, part)
        _layer_ticks(below, part)
    axes[0, 0].set_ylabel("full rank")
    axes[1, 0].set_ylabel("partial rank")
    axes[0, 0].set_yscale("log")
    axes[1, 0].set_ylim(bottom=0)
    entries = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    entries |= dict(zip(*reversed(axes[1, 0].get_legend_handles_labels()), strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4, handlelength=3)
    return figure


def _full(ax: Axes, full: pd.DataFrame) -> None:
    for weights, (colour, marker) in WEIGHTS.items():
        at = full[full["weights"] == weights].groupby("depth")
        if len(at):
            x = np.array(list(at.groups)) + 1
            ax.fill_between(x, at["lower"].min(), at["upper"].max(), color=colour, alpha=0.16, linewidth=0)
            ax.plot(x, at["rank"].median(), color=colour, marker=marker, ms=2.5, label=f"full, {weights}")
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
                    x, at["rank"].median(), color=colour, ls=DASHES[kind], marker=marker, ms=2.5,
                    label=f"{kind}, {weights}",
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
    figure = Figure(figsize=(TEXT_WIDTH, 2.7), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    most = float(max(read["full"].max(), read["partial"].max())) if len(read) else 1.0
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(TITLES.get(name, name))
        for weights, (colour, _) in WEIGHTS.items():
            for kind, marker in zip(KINDS, "ox", strict=True):
                part = read[(read["network"] == name) & (read["weights"] == weights) & (read["columns"] == kind)]
                style = {"facecolors": "none", "linewidths": 0.6} if marker == "o" else {"linewidths": 0.6}
                ax.scatter(
                    part["full"], part["partial"], s=9, marker=marker, label=f"{kind}, {weights}",
                    **({"edgecolors": colour} if marker == "o" else {"color": colour}), **style,
                )  # fmt: skip
        ax.plot([1, most], [1, most], color="0.5", lw=0.8)
        ax.set_xscale("symlog", linthresh=1)  # a numerical rank may rise
        ax.set_yscale("log")
        ax.set_xlabel("drop of the full rank")
    axes[0].set_ylabel("drop of the partial rank")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
