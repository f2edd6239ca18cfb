"""A comparison of runs as a page."""

from __future__ import annotations

from rankscope._base.provenance import versions
from rankscope.report.comparison import Comparison
from rankscope.report.figures import drawn
from rankscope.report.page import Page, Section, Table
from rankscope.report.sentences import Finding
from rankscope.views.phrases import capital

__all__ = ["comparison_page"]


def comparison_page(found: Comparison) -> Page:
    """One comparison, one page: how the runs were measured comes first, as in the printed form."""
    metric = capital(found.metric.replace("_", " "))
    first, *others = found.names
    head = ("layer", *found.names, *(f"{name} − {first}" for name in others))
    rows = []
    for layer in found.layers:
        values = [None if value != value else float(value) for value in layer.values]
        rows.append((layer.layer, *values, *(_minus(value, values[0]) for value in values[1:])))
    section = Section(
        title=f"{metric} of {len(found.names)} runs",
        lead=f"Runs: {', '.join(found.names)}.",
        findings=[Finding.of(fact) for fact in found.facts],
        figures=(drawn(found.plot, f"{metric} of every layer, one line for each run.", name="comparison"),),
        tables=(Table(metric, head, rows), Table.of(found.table(), "Every number", folded=True)),
        provenance={"bootstrap": f"{found.resamples:,} draws, seed {found.seed}"} if found.resamples else {},
    )
    return Page.of(section, versions())


def _minus(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first
