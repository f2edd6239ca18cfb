"""Fig. 3 as the paper draws it: dimension and rank before and after single components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.style import COLOURS, RANDOM_GREY, TEXT_WIDTH, new_axes, plain_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["draw_components"]


def draw_components(values: pd.DataFrame, tolerance: str, limit: int) -> Figure:
    """Grouped bars: dimension and rank, before (pale) and after (full colour)."""
    ax = new_axes(TEXT_WIDTH, 2.9)
    x = np.arange(len(values), dtype=float)
    # files of earlier versions have the text's dimensions alone
    own = "_reference" if tolerance == "reference" and "dimension_after_reference" in values else ""
    bars = (
        (f"dimension_before{own}", "PCA dimension before", COLOURS[2], 0.45),
        (f"dimension_after{own}", "after", COLOURS[2], 1.0),
        (f"rank_before_{tolerance}", "Jacobian rank before", RANDOM_GREY, 0.45),
        (f"rank_after_{tolerance}", "after", RANDOM_GREY, 1.0),
    )
    for place, (column, label, colour, alpha) in enumerate(bars):
        heights = values[column].to_numpy(dtype=float)
        ax.bar(x + (place - 1.5) * 0.2, heights, width=0.19, color=colour, alpha=alpha, label=label, linewidth=0)
    ax.axhline(limit, color="black", linewidth=0.7, linestyle=(0, (4, 3)), label=f"samples − 1 = {limit:,}")
    ax.set_xticks(x, [plain_text(label) for label in values["label"]], rotation=40, ha="right")
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.6, len(values) - 0.4)
    ax.set_ylabel("dimensions")
    ax.set_title(f"tolerance: {tolerance}", loc="left")
    ax.legend(ncols=5, loc="lower right", bbox_to_anchor=(1.0, 1.0), columnspacing=0.9, handlelength=1.2)
    figure: Any = ax.figure
    return figure
