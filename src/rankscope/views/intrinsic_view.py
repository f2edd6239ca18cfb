"""Intrinsic dimensions as text for the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.facts import Fact
from rankscope._base.style import COLOURS, TEXT_WIDTH, figure_style, new_axes, plain_text
from rankscope._base.text import one_line
from rankscope.views.phrases import in_columns
from rankscope.views.sentences import note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["intrinsic_text", "plot_intrinsic"]

_NAMES = {"twonn": "TwoNN", "mle": "maximum likelihood"}


def intrinsic_text(rows: Sequence[Mapping[str, Any]], method: str, neighbours: int, facts: Sequence[Fact]) -> str:
    """One line per layer."""
    body = [
        (
            one_line(row["name"]),
            *("–" if np.isnan(row[name]) else f"{row[name]:,.2f}" for name in ("value", "error")),
            f"{row['samples']:,}",
            f"{row['width']:,}",
        )
        for row in rows
    ]
    head = ("layer", "dimension", "std. error", "samples", "width")
    title = f"Intrinsic dimension ({_NAMES[method]}, {neighbours:,} neighbours)"
    return "\n".join([title, *in_columns([head, *body]), *map(note, facts)])


def plot_intrinsic(rows: Sequence[Mapping[str, Any]], method: str, *, ax: Axes | None = None) -> Axes:
    """The dimension over depth with twice its standard error."""
    with figure_style():
        if ax is None:
            ax = new_axes(max(3.35, min(TEXT_WIDTH, 0.24 * len(rows) + 1.4)), 2.7)
        x = np.arange(len(rows))
        values, errors = (np.array([row[name] for row in rows], dtype=float) for name in ("value", "error"))
        ax.errorbar(x, values, yerr=2 * errors, marker="o", color=COLOURS[0], elinewidth=0.9, capsize=2)
        ax.set_xticks(x, [plain_text(row["name"], 30) for row in rows], rotation=90)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("layer")
        ax.set_ylabel(f"intrinsic dimension ({_NAMES[method]})")
    return ax
