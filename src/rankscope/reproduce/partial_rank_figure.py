"""Fig. 1 (a, b, c) as the paper draws it: a bar a layer and network, and how far the images part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rankscope._base.style import COLOURS, TEXT_WIDTH, new_axes, plain_text, whole_ticks
from rankscope.reproduce.networks import PAPER_NETWORKS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["called", "draw_ranks"]


def called(names: Sequence[str], words: str) -> str:
    """What the bars show: networks of the panel's family, others that were added, or both.

    >>> called(["ResNet-18", "net"], "ResNets"), called(["net"], "ResNets")
    ('ResNets and added networks', 'added networks')
    """
    own = {p.name for p in PAPER_NETWORKS}
    parts = [words] * any(n in own for n in names) + ["added networks"] * any(n not in own for n in names)
    return " and ".join(parts)


def draw_ranks(
    values: pd.DataFrame, letter: str, words: str, as_printed: str, background: str, bar: str = "largest"
) -> Figure:
    """A bar is the largest rank over the images, whose whisker shows the smallest, or the mean, with both ends."""
    shown = values[values["as_printed"] == as_printed]
    names = list(dict.fromkeys(shown["network"]))
    words = called(names, words)
    ax = new_axes(TEXT_WIDTH * 0.7, 2.6)
    width = 0.8 / len(names)
    spread_drawn = False
    for k, name in enumerate(names):
        part = shown[shown["network"] == name]
        x = part["index"].to_numpy() + (k - (len(names) - 1) / 2) * width
        rank = part["rank"].to_numpy(dtype=float)
        ax.bar(x, rank, width=width * 0.92, color=COLOURS[k % len(COLOURS)], label=plain_text(name), linewidth=0)
        least = part["min"].to_numpy(dtype=float)
        most = part["max"].to_numpy(dtype=float) if bar == "mean" else rank
        some = most > least  # images that agree have nothing to draw
        if some.any():
            ax.vlines(x[some], least[some], most[some], color="black", linewidth=0.6)
            for end in (least, most) if bar == "mean" else (least,):
                ax.plot(x[some], end[some], "_", color="black", markersize=2.5, markeredgewidth=0.6)
            spread_drawn = True
    ax.set_xlabel(f"the i-th layer of {words}")
    ax.set_ylabel("partial rank")
    ax.set_title(f"({letter}) {words}, tolerance: {as_printed}, background: {background}", loc="left")
    ax.set_xlim(0.4, shown["index"].max() + 0.6)
    whole_ticks(ax)
    ax.set_ylim(0, shown["max" if bar == "mean" else "rank"].max() * 1.22 + 1)
    whisker = "smallest to largest" if bar == "mean" else "smallest"
    title = f"bar: {bar}, whisker: {whisker} of the images" if spread_drawn else None
    ax.legend(loc="upper right", ncols=min(len(names), 3), title=title, title_fontsize=7)
    figure: Any = ax.figure
    return figure
