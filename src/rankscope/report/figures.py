"""Figures inside a page: inline SVG that follows the page's own text colour."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankscope._base.style import figure_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Figure", "figure_of"]


@dataclass(frozen=True)
class Figure:
    """An ``<svg>`` element as text, and the sentence below it."""

    svg: str
    caption: str


def figure_of(axes: Axes, caption: str, *, name: str) -> Figure:
    """The figure that ``axes`` belong to. ``name`` keeps its element ids apart from those of the page's other figures.

    Black becomes the page's text colour and white its ground, so it reads on light and dark.
    """
    buffer = io.StringIO()
    with figure_style():
        figure: Any = axes.figure
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    # matplotlib writes every colour as #rrggbb after its property; a label may be called "black"
    svg = re.sub(r"\b(fill|stroke): #000000", r"\1: currentColor", svg)
    svg = re.sub(r"\b(fill|stroke): #ffffff", r"\1: var(--ground)", svg)
    # the size in points would win over the page's; the view box keeps the shape
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    # matplotlib's rules are scoped by an id in CSS only where it says so; a bare * would reach the page
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    return Figure(svg, caption)
