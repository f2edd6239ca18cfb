"""One look for every figure: colours that colour-blind readers tell apart, sizes that survive a paper's column."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "COLUMN_WIDTH",
    "RANDOM_GREY",
    "TEXT_WIDTH",
    "TRAINED",
    "UNTRAINED",
    "figure_style",
    "legend_above",
    "narrow_axes",
    "new_axes",
    "new_figure",
    "new_panels",
    "panels",
    "plain_text",
    "points_across",
    "title_above",
    "whole_figure",
    "whole_ticks",
]

# Okabe and Ito's palette, black first
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RANDOM_GREY = "#808080"  # random layers, in every figure: read on a light and on a dark ground
TRAINED, UNTRAINED = COLOURS[:2]  # networks, in every figure
COLUMN_WIDTH = 3.35  # inches: a column of a two-column paper (8.5 cm)
TEXT_WIDTH = 6.9

_STYLE: Any = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "text.usetex": False,
    "text.parse_math": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "rankscope",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """The look inside; the caller's own settings afterwards."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure that no window manager knows of, so that nothing has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from rankscope._base.glyphs import LetteredFigure

    figure = LetteredFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def new_axes(width: float = COLUMN_WIDTH, height: float = 2.4, *, dpi: float | None = None) -> Axes:
    """Axes on such a figure, which a notebook shows."""
    from rankscope._base.shown_axes import ShownAxes

    figure = new_figure(width, height)
    if dpi is not None:
        figure.set_dpi(dpi)
    return figure.add_subplot(axes_class=ShownAxes)


def new_panels(figure: Figure, rows: int, columns: int) -> Any:
    """All Axes of a figure as an array of two dimensions, which a notebook shows."""
    from rankscope._base.shown_axes import Panels, ShownAxes

    panels: Any = figure.subplots(rows, columns, squeeze=False, subplot_kw={"axes_class": ShownAxes})
    return Panels.of(panels)


def panels(axes: Any) -> Any:
    """Axes of one figure as an array, which a notebook shows."""
    from rankscope._base.shown_axes import Panels

    return Panels.of(axes)


def narrow_axes(height: float = 3.3) -> Axes:
    """Axes as wide as a phone: a page shows them where the wide ones would be too small to read."""
    with figure_style():
        return new_axes(COLUMN_WIDTH, height)


def plain_text(text: str, most: int = 40) -> str:
    """A text of the user's (a module's, class's or file's name) as matplotlib draws it letter by letter.

    Dollar signs start no formula, a leading underscore does not hide a legend's entry, what no font and no SVG file can
    hold is replaced, and what is longer than ``most`` characters loses its middle.

    >>> print(plain_text("$x$"), plain_text("layer" * 20, 13))
    \\$x\\$ layerl…rlayer
    """
    seen = _shortened("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)), most)
    seen = seen.replace("$", r"\$")
    return f"\N{HAIR SPACE}{seen}" if seen.startswith("_") else seen


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def title_above(ax: Axes, title: str) -> None:
    """A title in as many lines as the width of the axes asks for; of more than 80 letters the middle goes."""
    # 0.52 em: the mean letter of the sans serif
    letters = max(int(points_across(ax) / (0.52 * _STYLE["axes.titlesize"])), 12)
    lines = textwrap.wrap(_shortened(title, 80), letters)
    ax.set_title("\n".join(plain_text(line, letters) for line in lines), loc="left")


def legend_above(ax: Axes, handles: Sequence[Any]) -> None:
    """A legend between the axes and their title, in as many columns as there is room for: it hides no curve.

    In axes of the caller's, whose figure and title are his own, it is inside, where it hides least.
    """
    from rankscope._base.shown_axes import ShownAxes

    if not isinstance(ax, ShownAxes):
        ax.legend(handles=list(handles), loc="best", handlelength=1.8).set_in_layout(False)
        return
    room, em = points_across(ax), 0.55 * _STYLE["legend.fontsize"]
    most = max(int((room - 20) / em), 16)
    labels = [_shortened(str(handle.get_label()), most) for handle in handles]
    longest = max(map(len, labels), default=1)
    columns = min(max(int(room / (longest * em + 28)), 1), max(len(handles), 1))
    ax.legend(
        list(handles),
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.1,
        handlelength=1.8,
        columnspacing=1.0,
        labelspacing=0.35,
    )
    ax.height_above = -(-len(handles) // columns) * 1.5 * _STYLE["legend.fontsize"]


def points_across(ax: Axes) -> float:
    """Width of axes in points, as they are before names and legends take their room."""
    return float(ax.bbox.width) / float(ax.figure.dpi) * 72


def whole_figure(axes: Any) -> Any:
    """The figure that ``plot()``'s Axes, or the first of its array of them, belongs to."""
    return (axes.flat[0] if hasattr(axes, "flat") else axes).figure


def whole_ticks(ax: Axes) -> None:
    """Whole numbers along x, where it counts layers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
