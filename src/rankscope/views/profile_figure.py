"""Rank over depth as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.style import (
    COLOURS,
    RANDOM_GREY,
    TRAINED,
    UNTRAINED,
    figure_style,
    legend_above,
    plain_text,
    title_above,
)
from rankscope.views.compared import Compared
from rankscope.views.layer_curves import APART, curve_look, layer_axes
from rankscope.views.layer_labels import name_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_against_random", "plot_profile"]

_RANDOM = "random layers, same widths"
_MEDIAN, _RISES, _BRANCH = "median", "rises with depth", "in a branch"


def plot_profile(
    rows: Sequence[dict[str, Any]],
    *,
    label: str,
    title: str,
    images: int,
    predicted: list[float] | None = None,
    colour: str | None = None,
    untrained: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Function rank (line), median (dashed), range over the images (band), certified bounds (whiskers), rises (rings).

    With ``predicted`` the prediction for random layers (dotted). Where ``colour`` names none, an untrained network is
    orange and another one blue; further ones take the next colour.

    Draw a second profile into the same axes to compare; both need the same cut points. Its markers are open and a
    little to the right, so that a curve below it is seen.
    """
    with figure_style():
        if ax is None:
            ax = layer_axes(len(rows))
        number = sum(1 for line in ax.lines if line.get_gid() == "function rank")
        colour = _next_colour(ax, untrained=untrained) if colour is None else colour
        x = np.arange(len(rows)) + APART * number
        top = np.array([r["function_rank"]["value"] for r in rows], dtype=float)
        low = np.array([r["rank"]["min"] for r in rows], dtype=float)
        text = plain_text(label, 60)
        (line,) = ax.plot(x, top, label=text, clip_on=False, **curve_look(number, colour))
        line.set_gid("function rank")
        if images > 1:
            middle = np.array([r["rank"]["median"] for r in rows], dtype=float)
            ax.fill_between(x, low, top, color=colour, alpha=0.16, linewidth=0)
            ax.plot(x, middle, color=colour, linestyle=(0, (4, 2)), linewidth=0.9, zorder=2)
        certified = [r["certified"] for r in rows]
        if any(certified):
            lower = np.array([r["function_rank"]["lower"] for r in rows], dtype=float)
            upper = np.array([r["function_rank"]["upper"] for r in rows], dtype=float)
            if any(r.get("bracket") is not None for r in rows):  # bounds of probes are wide: a band shows their course
                band = np.where(certified, [lower, upper], top)
                ax.fill_between(x, *band, color=colour, alpha=0.16, linewidth=0).set_gid("bounds")
            error = np.where(certified, [top - lower, upper - top], 0.0)
            ax.errorbar(x, top, yerr=error, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, zorder=2)
        if predicted is not None:
            # one prediction is grey; further ones take their profile's colour
            drawn = any(line.get_gid() == "random layers" for line in ax.lines)
            _draw_random(ax, predicted, colour if drawn else RANDOM_GREY)
        rising = [i for i, r in enumerate(rows) if r["rises_by"]]
        if rising:
            ax.scatter(x[rising], top[rising], s=60, facecolors="none", edgecolors="#000000", linewidths=0.9, zorder=4)
        branches = [i for i, r in enumerate(rows) if not r["true_cut"]]
        if branches:
            ax.scatter(x[branches], top[branches], marker="x", s=22, color="#000000", zorder=5, linewidths=0.9)
        _frame(ax, [r["name"] for r in rows], float(top.max(initial=1)))
        _legend(ax, images, rising=bool(rising), branches=bool(branches))
        title_above(ax, title)
    return ax


def plot_against_random(layers: Sequence[Compared], *, model: str, title: str, ax: Axes | None = None) -> Axes:
    """Measured function rank and the random chain's, over the cut points."""
    with figure_style():
        if ax is None:
            ax = layer_axes(len(layers))
        x = np.arange(len(layers))
        top = [entry.measured for entry in layers]
        (line,) = ax.plot(x, top, marker="o", color=TRAINED, label=plain_text(model, 60), zorder=3, clip_on=False)
        line.set_gid("function rank")
        _draw_random(ax, [entry.predicted for entry in layers], RANDOM_GREY)
        _frame(ax, [entry.name for entry in layers], max(top))
        _legend(ax, 1, rising=False, branches=False)
        title_above(ax, title)
    return ax


def _next_colour(ax: Axes, *, untrained: bool) -> str:
    """The first one that no profile in these axes has, with the one that means this kind of network first."""
    first, other = (UNTRAINED, TRAINED) if untrained else (TRAINED, UNTRAINED)
    taken = {line.get_color() for line in ax.lines if line.get_gid() == "function rank"}
    order = [first, *COLOURS[2:], other]
    return next((colour for colour in order if colour not in taken), order[len(taken) % len(order)])


def _draw_random(ax: Axes, predicted: list[float], colour: str) -> None:
    """Dotted; one legend entry for all, and one line for profiles of the same widths."""
    before = [line for line in ax.lines if line.get_gid() == "random layers"]
    if any(np.array_equal(np.asarray(line.get_ydata()), predicted) for line in before):
        return
    (line,) = ax.plot(
        np.arange(len(predicted)),
        predicted,
        color=colour,
        linestyle=(0, (1, 1.2)),
        linewidth=1.4,
        label="_again" if before else _RANDOM,
        zorder=4,
    )
    line.set_gid("random layers")


def _frame(ax: Axes, names: list[str], highest: float) -> None:
    name_layers(ax, names)
    ax.set_ylim(bottom=0, top=max(ax.get_ylim()[1], highest * 1.06))
    ax.set_ylabel("Jacobian rank")


def _legend(ax: Axes, images: int, *, rising: bool, branches: bool) -> None:
    """One entry a profile; what means the same in every colour is explained once, in grey."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [line for line in ax.lines if line.get_gid() == "function rank"]
    handles += [line for line in ax.lines if line.get_gid() == "random layers" and line.get_label() == _RANDOM]
    earlier = ax.get_legend()
    known = {text.get_text() for text in earlier.get_texts()} if earlier is not None else set()
    grey = "#777777"
    if images > 1 or _MEDIAN in known:
        handles.append(Line2D([], [], color=grey, linestyle=(0, (4, 2)), linewidth=0.9, label=_MEDIAN))
        handles.append(Patch(color=grey, alpha=0.3, linewidth=0, label="range over inputs"))
    if rising or _RISES in known:
        ring = Line2D([], [], linestyle="none", marker="o", markersize=7, label=_RISES)
        ring.set(markerfacecolor="none", markeredgecolor="#000000")
        handles.append(ring)
    if branches or _BRANCH in known:
        handles.append(Line2D([], [], linestyle="none", marker="x", color="#000000", label=_BRANCH))
    legend_above(ax, handles)
