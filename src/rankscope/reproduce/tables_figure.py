"""Tables 1 and 2 and Fig. 2 as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.style import COLOURS, TEXT_WIDTH, new_axes, new_figure, new_panels, plain_text, whole_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "draw_table"]


def draw_table(values: pd.DataFrame) -> Figure:
    """The values as text, a row per network; what the paper prints of a column stands below it, in brackets."""
    words = {"top1": "top-1", "_percent": " (%)", "_millions": " (M)", "_": " "}
    names = [str(c) for c in values.columns]
    own = [c for c in names if c.removeprefix("paper_") == c or c.removeprefix("paper_") not in names]
    shown = values[own].copy()
    for column in own:
        if f"paper_{column}" in values:
            beside = zip(values[column], values[f"paper_{column}"], strict=True)
            shown[column] = [f"{_cell(ours)}\n({_cell(paper)})" for ours, paper in beside]
    two = len(own) < len(values.columns)
    for written, read in words.items():
        shown = shown.rename(columns=lambda c, w=written, r=read: c.replace(w, r))  # type: ignore[misc]
    size = (TEXT_WIDTH * (1.0 if two else 0.8), (0.5 if two else 0.32) * (len(shown) + 1) + 0.1)
    ax = new_axes(*size)
    ax.axis("off")
    cells = [[_cell(v) for v in row] for row in shown.itertuples(index=False)]
    table = ax.table(cellText=cells, colLabels=list(shown.columns), loc="center", cellLoc="center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(7 if two else 8)
    table.scale(1, 2.2 if two else 1.35)
    return whole_figure(ax)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return "\n".join(map(plain_text, value.split("\n")))
    return f"{value:.1f}" if isinstance(value, float) and value != int(value) else str(value).removesuffix(".0")


def draw_curves(values: pd.DataFrame, marks: dict[str, dict[str, Any]]) -> Figure:
    """A panel a network: top-1 accuracy over the share of components, and where 95% of it are reached."""
    names = list(dict.fromkeys(values["network"]))
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = new_figure(TEXT_WIDTH * (across / 3 if across > 1 else 0.5), 2.0 * down)
    panels = new_panels(figure, down, across)
    for k, name in enumerate(names):
        ax, part, mark = panels[k // across][k % across], values[values["network"] == name], marks[name]
        percent, top1 = part["percent_of_components"].to_numpy(), 100 * part["top1"].to_numpy()
        ax.plot(percent, top1, color=COLOURS[k % len(COLOURS)])
        at = 100 * mark["classification_dimension"] / mark["ambient"]
        ax.axhline(0.95 * mark["accuracy_percent"], color="0.4", linewidth=0.7, linestyle=":")
        ax.axvline(at, color="0.4", linewidth=0.7, linestyle=(0, (4, 2)))
        ax.annotate(
            f"{mark['classification_dimension']} of {mark['ambient']}", (at, 0.05), xycoords=("data", "axes fraction"),
            xytext=(-3 if at > 45 else 3, 0), textcoords="offset points", fontsize=7,
            ha="right" if at > 45 else "left",
        )  # fmt: skip
        ax.set_xscale("function", functions=(lambda v: np.sqrt(np.clip(v, 0, None)), np.square))
        ax.set_xlim(0, 100)
        ax.set_xticks([1, 5, 20, 50, 100])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_title(plain_text(name), loc="left")
        if k // across == down - 1 or k + across >= len(names):
            ax.set_xlabel("top k % of components (√ scale)")
        if k % across == 0:
            ax.set_ylabel("top-1 accuracy (%)")
    for k in range(len(names), across * down):
        panels[k // across][k % across].axis("off")
    return figure
