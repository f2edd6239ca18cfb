"""Fig. 4 as the paper draws it: a class in the centre of those that decide it, one panel per network."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from rankscope._base.style import TEXT_WIDTH, new_figure, new_panels, plain_text
from rankscope.deficit import ClassDependency
from rankscope.reproduce.deficit_rows import ETA, PANELS, solution, which_eta
from rankscope.views.deficit_figure import draw_star

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_deficit"]


def draw_deficit(drawn: list[tuple[str, ClassDependency, ClassDependency]], as_printed: str) -> Figure:
    """A column a network; a second row at the largest η, where the first has an all-zero solution."""
    more = any(not row.n_dependencies for _, row, _ in drawn)
    across, down = len(drawn), 2 if more else 1
    size = TEXT_WIDTH / 3 * 1.25
    figure = new_figure(size * across, (size + 0.35) * down)
    panels = new_panels(figure, down, across)
    for k, (name, row, largest) in enumerate(drawn):
        letter = PANELS[name][0] if name in PANELS else ""
        _panel(panels[0][k], row, [f"{f'({letter}) ' if letter else ''}{name}, η = {ETA:g}, {as_printed}:"], as_printed)
        if more:
            # this row is rankscope's own, whichever reading the first one has
            _panel(
                panels[1][k], largest, textwrap.wrap(f"{name}: {which_eta(largest)};", 40), "largest-eta"
            )  # fmt: skip
    return figure


def _panel(ax: Any, row: ClassDependency, title: list[str], as_printed: str) -> None:
    count = draw_star(row, ax, most=6)
    more = f", {row.n_dependencies - count} more not shown" if row.n_dependencies > count else ""
    told = []
    for kept, own, of in (
        (row.positive_accuracy_replaced, row.positive_accuracy, "of the class's images"),
        (row.accuracy_replaced, row.accuracy, "of all images"),
    ):
        told.append((f"replaced {kept:.0%}, " if row.n_dependencies else "") + f"own logit {own:.0%} {of}")
    ax.set_title("\n".join(plain_text(line, 80) for line in (*title, solution(as_printed))), loc="left", fontsize=7)
    ax.text(
        0.5,
        -0.02,
        "\n".join([*told, f"{row.status}{more}"]),
        transform=ax.transAxes,
        ha="center",
        va="top",
        fontsize=6.5,
    )
