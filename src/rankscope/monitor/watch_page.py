"""A watched run as a page: what changed most, a heat map and curves for each metric, every number."""

from __future__ import annotations

from rankscope._base.style import narrow_axes
from rankscope.monitor.watched import WatchedRun
from rankscope.report import Figure, Finding, Page, Section, Table, figure_of
from rankscope.views.phrases import capital
from rankscope.views.watch_figure import heat_map_height
from rankscope.views.watch_text import metric_name, watched_findings

__all__ = ["watched_page"]


def watched_page(run: WatchedRun, *, title: str, weights_of: str = "") -> Page:
    """One run, one page. ``weights_of`` is the model's name."""
    steps = [step.step for step in run.steps]
    found = watched_findings({m: run.values(m) for m in run.metrics}, run.layers, steps, run.unit)
    said = [Finding(text) for text in found]
    said += [Finding.of(fact) for fact in run.facts]
    section = Section(
        title=title,
        lead=f"Model: {weights_of}. Checkpoints: {run.folder}." if weights_of else f"Checkpoints: {run.folder}.",
        findings=said,
        figures=tuple(figure for metric in run.metrics for figure in _figures(run, metric)),
        tables=(*(_table(run, metric) for metric in run.metrics), _checkpoints(run)),
        provenance={name: str(value) for name, value in run.provenance.get("versions", {}).items()},
    )
    return Page.of(section, run.provenance.get("versions", {}))


def _figures(run: WatchedRun, metric: str) -> tuple[Figure, Figure]:
    what = capital(metric_name(metric))
    height = max(heat_map_height(len(run.layers)), 2.4)
    small, curves = run.plot(metric, ax=narrow_axes(height)), run.curves(metric, ax=narrow_axes())
    return (
        figure_of(run.plot(metric), f"{what} by layer and checkpoint.", name=f"map-{metric}", narrow=small),
        figure_of(run.curves(metric), f"{what}: one curve per layer.", name=f"curves-{metric}", narrow=curves),
    )


def _table(run: WatchedRun, metric: str) -> Table:
    values = run.values(metric)
    head = ("layer", *(f"{run.unit} {step.step:,}" for step in run.steps))
    rows = [
        (layer, *(None if v != v else float(v) for v in row)) for layer, row in zip(run.layers, values, strict=True)
    ]
    return Table(metric_name(metric), head, rows, folded=True)


def _checkpoints(run: WatchedRun) -> Table:
    rows = [(step.step, step.file) for step in run.steps]
    return Table("Checkpoints", (run.unit, "file"), rows, folded=True)
