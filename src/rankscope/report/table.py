"""A table of a page: plain values, how they are written, and the same values as CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rankscope._base.csv_text import csv_text
from rankscope._base.text import one_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Share", "Table"]

# bounds, ranges and powers of ten are texts, and are set flush right as numbers are
_NUMERIC = re.compile(r"(?:[\d.,e+\-−–%\[\] ]|to |none)*")


class Share(float):
    """A part of a whole, written in percent."""


@dataclass(frozen=True)
class Table:
    """Cells of plain values; columns of numbers are set flush right.

    Attributes
    ----------
    folded : bool
        It opens on demand.
    note : str
        What has to be known of this table alone; it stands above it.
    meaning : str
        What its columns mean; the page says it once, among its definitions.
    search : bool
        It has a field that filters its rows.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    folded: bool = False
    note: str = ""
    meaning: str = ""
    search: bool = False

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str, *, folded: bool = False) -> Table:
        """A table of pandas: its columns by their names in words, what is missing as a dash."""
        rows = [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
        return cls(caption, [str(name).replace("_", " ") for name in frame.columns], rows, folded=folded)

    def cells(self) -> list[list[tuple[str, bool]]]:
        """Text of every cell, and whether it is flush right. The numbers of a column have equally many decimals."""
        columns = list(zip(*self.rows, strict=True))
        forms = [_form([v for v in column if isinstance(v, float)]) for column in columns]
        texts = [[_text(v, form) for v in column] for column, form in zip(columns, forms, strict=True)]
        right = [
            all(map(_number, column)) or (place > 0 and _numeric(column_texts))
            for place, (column, column_texts) in enumerate(zip(columns, texts, strict=True))
        ]
        return [list(zip(row, right, strict=True)) for row in zip(*texts, strict=True)]

    def csv(self) -> str:
        """The values with all their digits; no spreadsheet takes a text for a formula."""
        import pandas as pd

        rows = [[one_line(v) if isinstance(v, str) else v for v in row] for row in self.rows]
        return csv_text(pd.DataFrame(rows, columns=[one_line(name) for name in self.head], dtype=object))


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def _numeric(texts: Sequence[str]) -> bool:
    return all(map(_NUMERIC.fullmatch, texts)) and any(c.isdigit() for text in texts for c in text)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _form(column: Sequence[float]) -> str:
    """How the numbers of one column are written: four digits of the largest, and no decimals that none of them needs.

    A column whose smallest number would keep less than two digits that way spans too much for one form.
    """
    sizes = [abs(v) for v in column if v and math.isfinite(v)]
    if not sizes:
        return ",.0f"
    # twelve digits: beyond them lies the rounding of float64
    needed = max(max(0, -int(Decimal(f"{v:.12g}").normalize().as_tuple().exponent)) for v in sizes)
    places = min(needed, max(0, 3 - math.floor(math.log10(max(sizes)))))
    if places > 8:  # more zeros than digits
        return ".4g"
    return f",.{places}f" if min(sizes) >= 10 ** (1 - places) or places == needed else ".4g"


def _text(value: Any, form: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Share):
        return f"{value:.1%}"
    if isinstance(value, float):
        return format(value, form)
    return str(value)
