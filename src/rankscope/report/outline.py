"""What stands where on a page: anchors, a table of contents, and everything said once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rankscope.report.section import Section
from rankscope.report.sentences import Finding
from rankscope.report.table import Table

__all__ = ["FEW", "Entry", "Outline", "Part", "outline"]

FEW = 5  # sentences of one kind that are seen without opening anything
DEFINITIONS = "How to read this page"


@dataclass(frozen=True)
class Entry:
    """A line of the table of contents; ``below`` a section are its tables."""

    anchor: str
    title: str
    below: bool = False


@dataclass(frozen=True)
class Part:
    """A section with its anchors, and those of its sentences that no section before it has said."""

    section: Section
    anchor: str
    findings: Sequence[str]
    cautions: Sequence[str]
    meanings: Sequence[str]
    tables: Sequence[tuple[str, Table]]


@dataclass(frozen=True)
class Outline:
    """The parts of a page, what its words mean, and where everything is."""

    parts: Sequence[Part]
    contents: Sequence[Entry] = ()

    @property
    def definitions(self) -> Sequence[tuple[str, Sequence[str]]]:
        """What has to be known to read each section, under its title."""
        return [(part.section.title, part.meanings) for part in self.parts if part.meanings]


def outline(sections: Iterable[Section]) -> Outline:
    """Anchors are made of titles, so that a link keeps its meaning when a section is added."""
    said: set[str] = set()
    anchors: set[str] = {"definitions"}
    parts = [_part(section, said, anchors) for section in sections]
    made = Outline(parts)
    entries = list(_entries(parts))
    if made.definitions:
        entries.append(Entry("definitions", DEFINITIONS))
    return Outline(parts, entries)


def _part(section: Section, said: set[str], anchors: set[str]) -> Part:
    anchor = _anchor(section.title, anchors)
    of = {kind: list(_new(section.findings, kind, said)) for kind in ("finding", "caution", "meaning")}
    meanings = of["meaning"]
    for table in section.tables:
        if table.meaning and table.meaning not in said:
            said.add(table.meaning)
            meanings.append(table.meaning)
    tables = [(_anchor(table.caption, anchors), table) for table in section.tables]
    return Part(section, anchor, of["finding"], of["caution"], meanings, tables)


def _new(findings: Sequence[Finding], kind: str, said: set[str]) -> Iterator[str]:
    for finding in findings:
        if finding.kind == kind and finding.text not in said:
            said.add(finding.text)
            yield finding.text


def _entries(parts: Sequence[Part]) -> Iterator[Entry]:
    for part in parts:
        yield Entry(part.anchor, part.section.title)
        for anchor, table in part.tables:
            yield Entry(anchor, table.caption, below=True)


def _anchor(title: str, taken: set[str]) -> str:
    """Plain letters of a title; ``at-`` keeps it apart from the ids inside figures."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    base = found = f"at-{re.sub(r'[^a-z0-9]+', '-', plain).strip('-') or 'section'}"
    number = 1
    while found in taken:
        number += 1
        found = f"{base}-{number}"
    taken.add(found)
    return found
