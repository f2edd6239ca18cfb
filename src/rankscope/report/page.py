"""A page made of sections: whatever is measured later is one more section."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rankscope._base.text import one_line
from rankscope.report.bidi import isolated
from rankscope.report.outline import DEFINITIONS, FEW, outline
from rankscope.report.section import Section
from rankscope.report.table import Table

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Page", "Section", "Table"]


@dataclass(frozen=True)
class Page:
    """Renders to one HTML file that needs nothing else."""

    title: str
    sections: Sequence[Section]
    lead: str = ""
    footer: str = ""

    @classmethod
    def of(cls, section: Section, versions: Mapping[str, str]) -> Page:
        """One measurement, one page; ``versions`` are those that it was made with."""
        return cls(section.title, (section,), footer=f"rankscope {versions.get('rankscope', '')}.")

    @property
    def _script(self) -> bool:
        """Only tables need a script: to be copied, and to be searched."""
        return any(section.tables for section in self.sections)

    def html(self) -> str:
        """The page. Every text is escaped; figures alone are markup."""
        made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        text = _template().render(
            page=self, outline=outline(self.sections), few=FEW, reading=DEFINITIONS, made=made, script=self._script
        )
        # a file's name may hold what is no Unicode
        return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import escape

    environment = Environment(
        loader=PackageLoader("rankscope.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bdi"] = isolated
    environment.filters["verbatim"] = escape  # lines stay lines
    return environment.get_template("page.html.j2")


def _plain(value: Any) -> Any:
    """Names with marks that turn the direction of writing would turn what follows them."""
    return value if hasattr(value, "__html__") else one_line(value)
