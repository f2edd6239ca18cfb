"""A class in the centre, the classes that determine it around it (paper, Fig. 4)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rankscope._base.errors import UsageError
from rankscope._base.style import COLOURS, figure_style, new_axes, new_figure, plain_text
from rankscope._base.text import counted
from rankscope.views.phrases import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Dependence", "draw_dependence", "draw_path", "draw_star"]

# apart for every common colour blindness, and no colour of a kind of network; the sign is also in line style and text
_POSITIVE, _NEGATIVE = COLOURS[2:4]


class Dependence(Protocol):
    """What a class and its neighbours are drawn from."""

    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def weights(self) -> tuple[float, ...]: ...
    @property
    def n_dependencies(self) -> int: ...
    @property
    def r2(self) -> float: ...
    @property
    def r2_held_out(self) -> float: ...
    @property
    def r2_null(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def accuracy_replaced(self) -> float: ...
    @property
    def positive_accuracy(self) -> float: ...
    @property
    def positive_accuracy_replaced(self) -> float: ...


def draw_dependence(row: Dependence, *, most: int = 8) -> Axes:
    """The figure at column width (3.4 inches): line width is |λ|; solid green raises the logit, dashed pink lowers."""
    from rankscope._base.shown_axes import ShownAxes

    figure = new_figure(3.4, 3.5, layout=None)
    figure.set_dpi(200)
    axes = figure.add_axes((0.0, 0.12, 1.0, 0.85), axes_class=ShownAxes)
    count = draw_star(row, axes, most=most)
    left = row.n_dependencies - count
    more = f", {counted(left, 'more class', 'more classes')} not shown" if left > 0 else ""
    figure.text(
        0.5,
        0.075,
        f"accuracy on the class {row.positive_accuracy:.1%}, replaced "
        f"{row.positive_accuracy_replaced:.1%}; on all {row.accuracy:.1%}, {row.accuracy_replaced:.1%}",
        fontsize=6,
        ha="center",
    )
    scores = [f"R² {row.r2:z.2f}"]  # z: what rounds to zero has no sign
    if not math.isnan(row.r2_held_out):
        scores.append(f"held out {row.r2_held_out:z.2f}")
    if not math.isnan(row.r2_null):
        scores.append(f"null {row.r2_null:z.2f}")
    figure.text(0.5, 0.025, ", ".join(scores) + f"; {row.status}{more}", fontsize=6, ha="center")
    return axes


def draw_star(row: Dependence, axes: Any, *, most: int = 8) -> int:
    """The class and its neighbours alone, on axes of the caller's; returns how many neighbours are drawn."""
    if most < 1:
        raise UsageError(f"most is {most}; show at least 1 class")
    count = min(most, row.n_dependencies)
    axes.set_xlim(-1.5, 1.5)
    axes.set_ylim(-1.32, 1.32)
    axes.axis("off")
    largest = max((abs(w) for w in row.weights), default=1.0)
    for k in range(count):
        weight = row.weights[k]
        angle = math.pi / 2 - 2 * math.pi * k / count
        x, y = 1.05 * math.cos(angle), 1.08 * math.sin(angle)
        colour = _POSITIVE if weight > 0 else _NEGATIVE
        width = 0.8 + 3.2 * abs(weight) / largest
        axes.plot([0, x], [0, y], color=colour, linewidth=width, linestyle="-" if weight > 0 else (0, (2, 1)), zorder=1)
        white = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
        axes.text(
            0.6 * x,
            0.6 * y,
            signed(weight),
            fontsize=6.5,
            color="black",
            ha="center",
            va="center",
            bbox=white,
            zorder=3,
        )
        _label(axes, x, y, row.names[k], colour, 6.5)
    _label(axes, 0, 0, row.name, "black", 7.5)
    if not count:
        axes.text(0, -0.5, "all-zero solution:\nno other class is used", fontsize=7, ha="center", va="center")
    return count


def draw_path(
    eta_share: NDArray[np.float64],
    lines: Sequence[tuple[str, NDArray[np.float64]]],
    count: NDArray[np.int64],
    name: str,
) -> Axes:
    """Shares between 0 and 1 (R², accuracies) over η/η_max, falling to the right, and how many classes are used."""
    with figure_style():
        ax = new_axes()
        for number, (label, values) in enumerate(lines):
            ax.plot(eta_share, values, marker="os^Dv"[number % 5], color=COLOURS[number % len(COLOURS)], label=label)
        ax.set_xscale("log")
        ax.invert_xaxis()
        ax.set_xlabel("η / η_max")
        ax.set_ylabel("R², accuracy")
        beside: Any = ax.twinx()
        beside.plot(eta_share, count, color="#777777", linestyle=":")
        beside.set_ylabel("other classes used (dotted)")
        beside.set_ylim(bottom=0)
        ax.legend(loc="best")
        ax.set_title(plain_text(name), loc="left")
    return ax


def _label(axes: object, x: float, y: float, name: str, colour: str, size: float) -> None:
    lines = textwrap.wrap(name, 14, max_lines=2, placeholder="…")
    text = "\n".join(map(plain_text, lines))
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colour, "linewidth": 0.9}
    axes.text(x, y, text, fontsize=size, ha="center", va="center", bbox=box, zorder=4)  # type: ignore[attr-defined]
