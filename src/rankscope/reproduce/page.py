"""A figure or table of the paper as a page: ours beside the paper's, and why they may differ."""

from __future__ import annotations

from rankscope._base.style import whole_figure
from rankscope.report import Finding, Page, Section, Table, figure_of
from rankscope.reproduce.outcome import Reproduction

__all__ = ["reproduction_page"]


def reproduction_page(found: Reproduction) -> Page:
    """One result, one page."""
    section = Section(
        title=found.title,
        lead=f"As printed: {found.as_printed}.",
        findings=[Finding(found.disagreement), *(Finding(note, "meaning") for note in found.notes)],
        figures=(figure_of(whole_figure(found.plot()).axes[0], found.title, name=found.name),),
        tables=(
            Table.of(found.comparison_table(), "Beside the paper"),
            Table.of(found.table(), "Every number", folded=True),
        ),
        provenance={name: str(value) for name, value in {**found.settings, **found.provenance}.items()},
    )
    return Page.of(section, {"rankscope": str(found.provenance.get("rankscope", ""))})
