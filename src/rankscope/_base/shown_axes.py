"""Axes, and arrays of them, whose figure a notebook shows when they are the value of a cell.

The figures of ``plot()`` belong to no window manager, so that nothing has to be closed; these show themselves instead.
Axes that a caller gives are his own: pyplot shows them.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

__all__ = ["Panels", "ShownAxes"]

_INCH = 120  # pixels of the page; twice as many are drawn, for dense screens


class ShownAxes(Axes):
    """Axes of a figure that is shown as a whole; a legend may be above them, and every title is above it."""

    height_above = 0.0  # points that the legend above the axes takes

    def set_title(
        self, label: str, fontdict: Any = None, loc: Any = None, pad: float | None = None, **options: Any
    ) -> Text:
        """A title, also one that is set later, which clears the legend above the axes."""
        if pad is None and self.height_above and self.get_legend() is not None:
            pad = 6.0 + self.height_above
        return super().set_title(label, fontdict, loc, pad, **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return _png(self.figure)


class Panels(np.ndarray):
    """An array of Axes of one figure; made with ``Panels.of``."""

    @classmethod
    def of(cls, axes: Any) -> Panels:
        """The Axes, in the shape they have."""
        return np.asarray(axes, dtype=object).view(cls)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]] | None:
        """Nothing for a part of it: an Axes of its own has another ``_repr_png_``, and an empty one has no figure."""
        return _png(self.flat[0].figure) if self.size else None


def _png(figure: Any) -> tuple[bytes, dict[str, int]]:
    """The picture, and its size on the page, as IPython takes them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * _INCH)
    width, height = figure.get_size_inches()
    return buffer.getvalue(), {"width": round(width * _INCH), "height": round(height * _INCH)}
