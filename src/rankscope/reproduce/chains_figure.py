"""Fig. 1 (d, e, f) as the paper draws it: rank and feature dimension of linear chains over depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.style import COLOURS, COLUMN_WIDTH, RANDOM_GREY, new_axes, whole_ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["draw_chain"]


def draw_chain(values: pd.DataFrame, letter: str, title: str, tolerance: str, width: int) -> Figure:
    """Means over the chains as lines, their range as bands, the laws black."""
    ax = new_axes(COLUMN_WIDTH, 2.6)
    groups = values.groupby("depth")
    depths = np.unique(values["depth"].to_numpy())
    theories: list[Any] = []
    for column, theory, colour, marker, label in (
        (f"jacobian_rank_{tolerance}", f"predicted_{tolerance}", RANDOM_GREY, "o", "Jacobian"),
        ("feature_dimension", "predicted_features", COLOURS[2], "s", "feature"),
    ):
        low, mean, high = (getattr(groups[column], how)().to_numpy() for how in ("min", "mean", "max"))
        ax.fill_between(depths, low, high, color=colour, alpha=0.25, linewidth=0)
        every = max(1, len(depths) // 12)
        # the markers at both ends whole, above the axes' lines
        ax.plot(depths, mean, color=colour, marker=marker, markevery=every, label=label, clip_on=False, zorder=3)
        predicted = groups[theory].first().to_numpy()
        if any(np.allclose(predicted, other, rtol=1e-6) for other in theories):
            continue  # one law for both, as under the reference tolerance
        theories.append(predicted)
        dashes: Any = (0, (4, 2)) if marker == "o" else ":"
        ax.plot(depths, predicted, color="black", linewidth=0.8, linestyle=dashes, gid="theory", zorder=4)
    names = ("theory",) if len(theories) == 1 else ("theory, Jacobian", "theory, feature")
    for name, dashes in zip(names, ((0, (4, 2)), ":"), strict=False):
        ax.plot([], [], color="black", linewidth=0.8, linestyle=dashes, label=name)
    ax.set_xlim(1, max(depths[-1], 2))
    whole_ticks(ax)
    ax.set_ylim(0, width * 1.03)
    ax.set_xlabel("number of FC layers")
    ax.set_ylabel("rank or dimension")
    ax.set_title(f"({letter}) {title}", loc="left")
    ax.legend(title=f"tolerance: {tolerance}", title_fontsize=7)
    figure: Any = ax.figure
    return figure
