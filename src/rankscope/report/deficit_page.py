"""The independence deficit as sentences, figures and a class-by-class table that can be searched."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankscope.deficit import Status
from rankscope.report.figures import figure_of
from rankscope.report.page import Page, Section, Table
from rankscope.report.sentences import Finding
from rankscope.report.table import Share
from rankscope.views.deficit_text import exact_reasons
from rankscope.views.phrases import counted, own_verb, signed, with_values

if TYPE_CHECKING:
    from rankscope.deficit import ClassDependency, DependencyTable

__all__ = ["deficit_findings", "deficit_page", "deficit_section", "most_dependent"]

_WEIGHTS = 12  # dependent classes in one cell; deficit.json has them all
_HEAD = (
    "class", "status", "others", "R² fitted", "R² held out", "R² null", "accuracy on the class",
    "on the class, replaced", "accuracy on all", "on all, replaced", "η/η_max", "number", "depends on (weight)",
)  # fmt: skip


def most_dependent(table: DependencyTable) -> ClassDependency:
    """The class that others explain best beyond the null; the best explained one where there is none."""
    return table.best_explained()


def deficit_page(table: DependencyTable, *, model: str | None = None, source: str | None = None) -> Page:
    """One table, one page."""
    of = f" of {model}" if model else ""
    section = deficit_section(table, title=f"Independence deficit{of}", source=source)
    return Page.of(section, table.versions)


def deficit_section(
    table: DependencyTable, *, title: str = "Independence deficit", source: str | None = None, name: str = "deficit"
) -> Section:
    """Sentences, the most dependent class with its neighbours, every class in a searchable table."""
    shown = most_dependent(table)
    caption = (
        f"Class {shown.name} and the classes that explain its logit. Solid green raises it, dashed pink lowers it; the "
        "number and the line width are the weight."
    )
    eta = (
        f"η = {table.eta:g}"
        if table.eta is not None
        else f"the largest penalty η that keeps {table.keep:.0%} of the accuracy"
    )
    return Section(
        title=title,
        lead=f"A Lasso explains each class's logit by the others, at {eta}. Samples used: {table.samples_used}.",
        findings=list(deficit_findings(table)),
        figures=(figure_of(table.plot(shown.index), caption, name=name),),
        tables=(_table(table),),
        provenance=_provenance(table, source),
    )


def deficit_findings(table: DependencyTable) -> Iterator[Finding]:
    """What the table shows, one sentence a finding, then what limits it."""
    counts, total = Counter(r.status for r in table), counted(len(table), "class", "classes")
    found = [r for r in table if r.status is Status.DEPENDENT]
    keep = table.keep if table.keep is not None else 0.9
    beyond = " beyond the permutation null" if table.permutations else ""
    if found:
        best = most_dependent(table)
        top = ", ".join(f"{n} ({signed(w)})" for n, w in zip(best.names[:3], best.weights[:3], strict=True))
        null = f", null {best.r2_null:z.2f}" if table.permutations else ""
        yield Finding(
            f"{len(found):,} of {total} {own_verb(len(found), 'depend')} on the others{beyond}. Class {best.name} is "
            f"explained best: R² {best.r2:z.2f}{null}, mostly by {top}."
        )
        yield Finding(_replaceable(table.deficit(5, keep, beyond_null=bool(table.permutations)), keep))
    else:
        yield Finding(f"None of {total} depends on the others{beyond}.")
    rest = {k: v for k, v in counts.items() if k is not Status.DEPENDENT}
    if rest:
        which = "other classes" if found else "classes"
        yield Finding(f"Status of the {which}: " + ", ".join(f"{k} ({v:,})" for k, v in sorted(rest.items())) + ".")
    if found and all(r.r2 < 0.5 for r in table):
        yield Finding(
            "The other classes explain less than half of the variance of any class's logit. Keeping the accuracy is a "
            "weak requirement: a replaced logit need only be the largest where its class is present.",
            "meaning",
        )
    if not table.permutations:
        yield Finding("No permutation null was run, so a high R² may reflect class means alone.", "caution")
    trivial = Counter(r.trivial for r in table if r.trivial)
    why = exact_reasons(table.n_classes, table.logit_rank, table.feature_dimension)
    for fact in table.facts:
        yield Finding.of(fact)
    for reason in sorted(trivial):
        yield Finding(
            f"{trivial[reason]:,} of {total} are exact combinations of the others: {why[reason]}.",
            "caution",
        )


def _replaceable(share: float, keep: float) -> str:
    """Classes that depend on others alone: others may be replaced by noise as well."""
    lost = f"by five or fewer others without losing more than {1 - keep:.0%} of the accuracy"
    if not share:
        return f"None of the classes that depend on others can be replaced {lost}."
    return f"{share:.0%} of the classes depend on others and can each be replaced {lost}."


def _table(table: DependencyTable) -> Table:
    rows = []
    for r in table:
        pairs = [f"{n} ({signed(w)})" for n, w in zip(r.names[:_WEIGHTS], r.weights[:_WEIGHTS], strict=True)]
        more = r.n_dependencies - len(pairs)
        depends = ", ".join(pairs) + (f" and {more:,} more" if more > 0 else "") or "no other class"
        rows.append(
            (r.name, r.status, r.n_dependencies, _number(r.r2), _number(r.r2_held_out), _number(r.r2_null),
             _share(r.positive_accuracy), _share(r.positive_accuracy_replaced), _share(r.accuracy),
             _share(r.accuracy_replaced), _number(r.eta_over_eta_max), r.index, depends)
        )  # fmt: skip
    meaning = (
        "R² is centred; the null is its mean over permutations at the same η. A class is dependent if its R² exceeds "
        "that mean by more than four standard deviations. Replaced: the class's logit is predicted from the others. "
        "Accuracies are top-1."
    )
    return Table("Every class", _HEAD, rows, meaning=meaning, search=True)


def _number(value: float) -> float | None:
    return round(value, 3) + 0.0 if math.isfinite(value) else None


def _share(value: float) -> Share | None:
    return Share(value) if math.isfinite(value) else None


def _provenance(table: DependencyTable, source: str | None) -> dict[str, str]:
    made = {
        "samples used": table.samples_used,
        "samples": f"{table.samples:,} fitted, {table.held_out_samples:,} held out",
        "null": f"{table.null}, {counted(table.permutations, 'permutation')}, seed {table.seed}",
        "duality gap": f"at most {max(r.duality_gap for r in table):.1e} (tolerance {table.tol:g})",
        "computed in": "float64",
        "device": table.device,
        "versions": with_values(table.versions),
    }
    return {"data": source} | made if source else made
