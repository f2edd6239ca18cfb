"""A page made of sections: whatever is measured later is one more section."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rankscope._base.text import one_line
from rankscope.report.figures import Figure
from rankscope.report.sentences import Finding

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Page", "Section", "Table"]


@dataclass(frozen=True)
class Table:
    """Cells of plain values; numbers are set flush right. ``folded`` tables open on demand, ``search`` filters rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    folded: bool = False
    note: str = ""
    search: bool = False

    def cells(self) -> list[list[tuple[str, bool]]]:
        """Text of every cell, and whether it is a number. The numbers of a column have equally many decimals."""
        forms = [_form([v for v in column if isinstance(v, float)]) for column in zip(*self.rows, strict=True)]
        return [
            [
                (_text(v, form), isinstance(v, int | float) and not isinstance(v, bool))
                for v, form in zip(row, forms, strict=True)
            ]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Section:
    """One measurement: the first figure, what was found in sentences, further figures, the numbers, their origin."""

    title: str
    findings: Sequence[Finding] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """Renders to one HTML file that needs nothing else."""

    title: str
    sections: Sequence[Section]
    lead: str = ""
    footer: str = ""

    @property
    def searchable(self) -> bool:
        """Whether any table filters its rows, which takes a few lines of script in the page."""
        return any(table.search for section in self.sections for table in section.tables)

    def html(self) -> str:
        """The page. Every text is escaped; figures alone are markup."""
        made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        text = _template().render(page=self, made=made)
        # a file's name may hold what is no Unicode
        return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rankscope.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _plain(value: Any) -> Any:
    """Names with marks that turn the direction of writing would turn what follows them."""
    return value if hasattr(value, "__html__") else one_line(value)


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
    if isinstance(value, float):
        return format(value, form)
    return str(value)
