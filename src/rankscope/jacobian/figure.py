"""Rank over depth as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rankscope._base.style import COLOURS, TEXT_WIDTH, figure_style, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rankscope.jacobian.profile import JacobianProfile

__all__ = ["plot_profile"]


def plot_profile(profile: JacobianProfile, *, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Function rank (line), range over the images (band), certified bounds (whiskers), rises (rings), depth downwards.

    Draw a second profile into the same axes to compare; both need the same cut points.
    """
    rows = [profile.summary(layer) for layer in profile.layers]
    with figure_style():
        if ax is None:
            ax = new_axes(max(3.35, min(TEXT_WIDTH, 0.24 * len(rows) + 1.4)), 2.7)
        number = sum(1 for line in ax.lines if line.get_gid() == "function rank")
        colour = COLOURS[number % len(COLOURS)]
        x = np.arange(len(rows))
        top = np.array([r["function_rank"]["value"] for r in rows], dtype=float)
        low = np.array([r["rank"]["min"] for r in rows], dtype=float)
        text = label or f"{profile.model} ({profile.tolerance.name})"
        marker = "osD^v"[number % 5]
        (line,) = ax.plot(x, top, marker=marker, color=colour, label=text, zorder=3, clip_on=False)
        line.set_gid("function rank")
        if len(profile.images) > 1:
            ax.fill_between(
                x, low, top, color=colour, alpha=0.18, linewidth=0, label=f"range over {len(profile.images)} inputs"
            )
        certified = [r["certified"] for r in rows]
        if any(certified):
            lower = np.array([r["function_rank"]["lower"] for r in rows], dtype=float)
            upper = np.array([r["function_rank"]["upper"] for r in rows], dtype=float)
            error = np.where(certified, [top - lower, upper - top], 0.0)
            ax.errorbar(x, top, yerr=error, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, zorder=2)
        rising = [i for i, r in enumerate(rows) if r["rises_by"]]
        if rising:
            ax.scatter(
                x[rising], top[rising], s=60, facecolors="none", edgecolors="#000000", linewidths=0.9, zorder=4,
                label="rank rises with depth",
            )  # fmt: skip
        branches = [i for i, r in enumerate(rows) if not r["true_cut"]]
        if branches:
            ax.scatter(
                x[branches],
                top[branches],
                marker="x",
                s=22,
                color="#000000",
                zorder=5,
                linewidths=0.9,
                label="in a branch",
            )
        ax.set_xticks(x, [r["name"] for r in rows], rotation=60, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.4, len(rows) - 0.6)
        ax.set_ylim(bottom=0, top=max(ax.get_ylim()[1], float(top.max(initial=1)) * 1.06))
        ax.set_xlabel("sub-network, from the input to")
        ax.set_ylabel("Jacobian rank")
        if len(ax.get_legend_handles_labels()[0]) > 1 or label:
            ax.legend(loc="best")
        ax.set_title(f"{profile.columns}, tolerance {profile.tolerance.name}", loc="left")
    return ax
