"""Figures inside a page: inline SVG that follows the page's own text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankscope._base.style import COLOURS, RANDOM_GREY, figure_style, narrow_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Figure", "drawn", "figure_of"]


# matplotlib's colours by what the page calls them: it has another tone of each for a dark ground
_NAMES = ("blue", "orange", "green", "pink", "yellow", "sky")
_VARIABLES = {colour.lower(): f"var(--{name})" for colour, name in zip(COLOURS, _NAMES, strict=False)} | {
    "#000000": "currentColor",
    "#ffffff": "var(--ground)",
    **dict.fromkeys((RANDOM_GREY, "#777777", "#555555", "#888888"), "var(--grey)"),
}
_REM = 7.54  # of an inch of a figure: letters of 8 points are as large as a page's small print


@dataclass(frozen=True)
class Figure:
    """An ``<svg>`` element as text, and the sentence below it. ``narrow`` is the same figure drawn for a phone."""

    svg: str
    caption: str
    narrow: str = ""


def figure_of(axes: Axes, caption: str, *, name: str, narrow: Axes | None = None) -> Figure:
    """The figure that ``axes`` belong to. ``name`` keeps its element ids apart from those of the page's other figures.

    Black becomes the page's text colour, white its ground, and each colour of the palette the page's tone of it, so it
    reads on light and dark.
    """
    small = "" if narrow is None else _svg(narrow, f"{name}-narrow")
    return Figure(_svg(axes, name), caption, small)


def drawn(plot: Callable[..., Axes], caption: str, *, name: str) -> Figure:
    """What ``plot`` draws, once as wide as it is and once as wide as a phone."""
    return figure_of(plot(), caption, name=name, narrow=plot(ax=narrow_axes()))


def _svg(axes: Axes, name: str) -> str:
    buffer = io.StringIO()
    figure: Any = axes.figure
    with figure_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    # matplotlib writes every colour as #rrggbb after its property; a label may be called "black"
    svg = re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})", lambda m: f"{m[1]}: {_VARIABLES.get(m[2], m[2])}", svg)
    # the size in points would win over the page's; the view box keeps the shape
    size = f'style="max-width: {figure.get_figwidth() * _REM:.1f}rem"'
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', rf"<svg\1 {size}", svg)
    # matplotlib's rules are scoped by an id in CSS only where it says so; a bare * would reach the page
    return re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
