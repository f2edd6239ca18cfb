"""The ranks of full Jacobians as a table of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankscope._base.text import one_line
from rankscope.views.phrases import bounds

__all__ = ["FullRow", "full_lines"]


@dataclass(frozen=True)
class FullRow:
    """One cut point on one image. ``error`` and ``bracket`` are ``None`` where all singular values are known."""

    layer: str
    image: str
    rows: int
    columns: int
    value: int
    lower: int
    upper: int
    threshold: float
    error: float | None
    bracket: float | None
    way: str
    certified: bool


def full_lines(rows: Sequence[FullRow]) -> list[str]:
    """A heading and one line a row; the image stands in it where there are several."""
    several = len({row.image for row in rows}) > 1
    head = ["layer", "image", "rows", "inputs", "rank", "[lower, upper]", "std. error", "bracket", "method"]
    table = [head]
    for row in rows:
        certain = bounds(row.lower, row.upper) if row.certified else "not certified"
        error = "-" if row.error is None or row.error != row.error else f"{row.error:.2g}"
        bracket = "-" if row.bracket is None else f"{row.bracket:.1%}"
        sizes = [f"{row.rows:,}", f"{row.columns:,}"]
        table.append(
            [one_line(row.layer), one_line(row.image), *sizes, f"{row.value:,}", certain, error, bracket, row.way]
        )
    kept = [column for place, column in enumerate(zip(*table, strict=True)) if several or place != 1]
    widths = [max(map(len, column)) for column in kept]
    left = 2 if several else 1
    lines = []
    for cells in zip(*kept, strict=True):
        parts = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    return lines
