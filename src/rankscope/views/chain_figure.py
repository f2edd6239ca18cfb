"""Measured ranks of random chains over depth, with the predictions laid over."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from rankscope._base.errors import DataError
from rankscope._base.style import COLOURS, RANDOM_GREY, new_axes, plain_text, whole_ticks
from rankscope.views.chains import ChainView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_chain"]


def plot_chain(chains: ChainView, ax: Axes | None) -> Axes:
    """Lines are means over seeds, bands their range."""
    if ax is None:
        ax = new_axes(8.5 / 2.54, 7.2 / 2.54, dpi=300)
    ranks, dimensions = chains.ranks, chains.dimensions
    reached = int(np.isfinite(ranks).any(axis=0).sum())
    if not reached:
        raise DataError("no depth was measured before the float32 stop; leave the stop off, or raise the scale of init")
    depths = np.arange(1, chains.depth + 1)
    series = (
        (ranks, chains.predicted[0], RANDOM_GREY, "o", "Jacobian rank"),
        (dimensions, chains.predicted[1], COLOURS[2], "s", "feature dimension (PCA)"),
    )
    every = max(1, chains.depth // 12)
    # the reference's threshold on σ is the one on λ of the features: then both predictions are one curve
    alike = np.allclose(*chains.predicted, rtol=1e-6, equal_nan=True)
    name = "theory" if chains.in_range else "limit law"
    if chains.law.beside:
        name = "linear residual chain" if chains.residual else "linear chain"
    for values, theory, colour, marker, label in series:
        part, shown = values[:, :reached], depths[:reached]
        first = marker == "o"
        ax.fill_between(shown, np.nanmin(part, 0), np.nanmax(part, 0), color=colour, alpha=0.25, linewidth=0)
        # where both curves are one, the wide line with filled markers shows around the thin one with open ones
        ax.plot(
            shown, np.nanmean(part, 0), color=colour, marker=marker, markevery=every, label=label,
            ms=3.5 if first else 5, lw=2 if first else 0.9, markerfacecolor=colour if first else "none",
            clip_on=False, zorder=3,  # the markers at both ends whole, above the axes' lines
        )  # fmt: skip
        if np.isfinite(theory).any() and (first or not alike):
            dashes = (0, (4, 2)) if first else (0, (1, 1.5))
            text = name if alike else f"{name}, {'rank' if first else 'features'}"
            ax.plot(depths, theory, color="black", ls=dashes, lw=0.9, label=text, zorder=4)
    if any(chains.stops):
        ax.axvline(reached, color="0.5", lw=0.8, label="float32 stop")
    ax.set_xlim(1, max(chains.depth, 2))
    whole_ticks(ax)
    ax.set_ylim(0, chains.width * 1.03)
    ax.set_xlabel("depth (layers)", fontsize=8)
    ax.set_ylabel("dimensions", fontsize=8)
    ax.set_title("\n".join(plain_text(line, 60) for line in textwrap.wrap(chains.title, 46)), fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    # below the axes: inside, some curve of some block runs through any corner
    ax.legend(
        fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.23), ncols=2, borderaxespad=0,
        columnspacing=1.2, handlelength=2.4,
    )  # fmt: skip
    return ax
