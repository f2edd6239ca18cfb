"""Fig. 4: classes whose logit a few other classes decide."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.provenance import device_name, versions
from rankscope._base.style import TEXT_WIDTH
from rankscope.dependencies import ClassDependency, DependencyTable, independence_deficit
from rankscope.dependencies.figure import draw_star
from rankscope.reproduce.measured import Prepared, chance_note, collection, pass_over, prepared, skipped_notes
from rankscope.reproduce.outcome import Comparison, Reproduction
from rankscope.reproduce.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DEFICIT_NETWORKS", "deficit"]

_ETA = 20.0  # paper, §6.2
# As independence_deficit names them, with their η. The third is rankscope's own: the largest η that keeps the accuracy,
# since under the text's reading η = 20 may outweigh all that the logits share.
_SOLVED: dict[str, tuple[str, float | None]] = {
    "paper": ("all", _ETA),
    "reference": ("reference", _ETA),
    "largest-eta": ("all", None),
}
# Accuracy on positive samples with the logit replaced, in %: paper, caption of Fig. 4 (b, c, d). Of the classes in the
# centre the text names one alone, of panel (c).
_PANELS = {"ResNet-50": ("b", 98.0, None), "GluMixer-24": ("c", 90.0, "junco"), "Swin-T": ("d", 82.0, None)}
DEFICIT_NETWORKS = tuple(_PANELS)
# what ClassDependency.status says where the smallest η tried is shown
_NONE_KEEPS = ("no eta keeps accuracy", "not converged")
_WHY = (
    "the text names the class of panel (c) alone, so ours is the class that others explain best; the authors' solver "
    "stops after 5,000 gradient steps, ours is exact"
)


def deficit(name: str, settings: Settings) -> Reproduction:
    """Solve for every class of every network under both conventions, one part each."""
    import pandas as pd

    frames, comparison, notes, about = [], [], [], []
    drawn: list[tuple[str, ClassDependency, ClassDependency]] = []
    counts: list[str] = []
    for one in prepared(settings, DEFICIT_NETWORKS):
        over = pass_over(one)
        tables = {c: DependencyTable.from_dict(_solved(one, c)) for c in _SOLVED}
        label = one.network.name
        for convention, table in tables.items():
            frame = table.table().reset_index().drop(columns=["trivial"])
            frame.insert(0, "convention", convention)
            frame.insert(0, "network", label)
            frames.append(frame)
        chosen = tables[settings.convention]
        row = _shown(chosen, one)
        largest = _shown(tables["largest-eta"], one)
        drawn.append((label, row, largest))
        used = {c: [r for r in t if r.n_dependencies] for c, t in tables.items()}
        counts.append(
            f"{label} {len(used['paper'])} against {len(used['reference'])} of {chosen.n_classes}"
            f" (median number of others {_median(used['paper'])} against {_median(used['reference'])})"
        )
        comparison += _compare(one, chosen, row, settings.convention)
        comparison += _compare(one, tables["largest-eta"], largest, "largest-eta")
        notes += one.notes() + skipped_notes(label, over["skipped"]) + chance_note(label, over)
        if not row.n_dependencies:
            notes.append(
                f"{label}: at η = {_ETA:g} every solution is zero under {settings.convention}, η_max is at most "
                f"{max(r.eta_max for r in chosen):.3g}: the penalty outweighs all that the logits share; "
                f"the lower panel shows {_which(largest)}"
            )
        if chosen.feature_dimension is not None and chosen.feature_dimension < chosen.n_classes:
            notes.append(
                f"{label}: {chosen.feature_dimension} features make {chosen.n_classes} logits, so exact dependences "
                "exist whatever was learned"
            )
        about.append(one.about())
    values = pd.concat(frames, ignore_index=True)
    return Reproduction(
        name=name,
        title="Fig. 4: independence deficit",
        convention=settings.convention,
        values=values,
        comparison=tuple(comparison),
        disagreement=(
            "The text takes the mean over all images (here with an intercept, which Eq. 12 lacks), the authors' code "
            f"fits each class on its own positive images, both with η = {_ETA:g}. Classes with any other class in "
            f"their solution, text against code, are here: {'; '.join(counts)}."
        ),
        settings={**settings.to_dict(), "eta": _ETA, "solved": _SOLVED[settings.convention][0], "networks": about},
        provenance={**versions(), "device": device_name(settings.device)},
        notes=tuple(dict.fromkeys(notes)),
        _draw=lambda _: _draw(drawn, settings.convention),
    )


def _solved(one: Prepared, convention: str) -> dict[str, Any]:
    name, eta = _SOLVED[convention]

    def compute(_: Path) -> dict[str, Any]:
        found = collection(one)
        table = independence_deficit(
            found.logits,
            found.labels,
            eta=eta,
            convention=name,
            class_names=one.folders.names,
            feature_dimension=int(found.features.shape[1]),
            held_out=0,  # the text and the code fit all the images
            permutations=5 if one.settings.full else 1,
            seed=one.settings.seed,
            device=one.settings.device,
        )
        return table.to_dict()

    given = {**one.identity(), "eta": eta, "samples": pass_over(one)["samples"], "classes": list(one.folders.names)}
    found: dict[str, Any] = one.parts.keep(f"deficit-{convention}", given, compute)
    return found


def _shown(table: DependencyTable, one: Prepared) -> ClassDependency:
    """The class that the text names, if it is among the classes, else the one that others explain best."""
    named = _PANELS.get(one.network.name, ("", 0.0, None))[2]
    for row in table:
        if named is not None and row.name == named and row.n_dependencies:
            return row
    return max(table, key=lambda r: (r.n_dependencies > 0, r.status == "dependent", r.r2))


def _which(row: ClassDependency) -> str:
    """What η the third solution has: the walk down from η_max stops where the accuracy is kept, or at its end."""
    if row.status in _NONE_KEEPS:
        return f"the smallest η tried, {row.eta:.2g}: none keeps 90 % of the accuracy"
    return f"the largest η that keeps 90 % of the accuracy, {row.eta:.2g}"


def _compare(one: Prepared, table: DependencyTable, row: ClassDependency, convention: str) -> list[Comparison]:
    label = one.network.name
    letter, positive, _ = _PANELS.get(label, ("", None, None))
    panel = f" (panel {letter})" if letter else ""
    solved = "positive images, no intercept" if convention == "reference" else "all images, intercept"
    replaced = 100 * row.positive_accuracy_replaced if row.n_dependencies else None
    eta = f"η = {_ETA:g}" if convention != "largest-eta" else _which(row)
    how = f"class {row.name!r}, {eta}, {solved}"
    if convention == "largest-eta":
        label, panel, positive = (
            f"{label} at {'the smallest η tried' if row.status in _NONE_KEEPS else 'its largest η'}",
            "",
            None,
        )
    return [
        Comparison(
            f"{label}{panel}: accuracy on positives, replaced (%)",
            positive, replaced, None, how, _WHY if replaced is not None else "at this η no other class is used at all",
        ),
        Comparison(
            f"{label}{panel}: accuracy on positives, own logit (%)", None, 100 * row.positive_accuracy, None, how,
            "the figure prints it in green, the text does not",
        ),
        Comparison(
            f"{label}{panel}: other classes used", None, float(row.n_dependencies), None, how,
            "the text says k ≪ 1000; gradient steps never reach exact zeros",
        ),
        Comparison(
            f"{label}: classes that others determine (% of {table.n_classes})",
            None, 100 * sum(r.status == "dependent" for r in table) / len(table), None,
            f"{eta}, {solved}, R² beyond a permutation null", "the text says many and prints no number",
        ),
    ]  # fmt: skip


def _median(rows: list[ClassDependency]) -> int:
    counts = sorted(r.n_dependencies for r in rows)
    return counts[len(counts) // 2] if counts else 0


def _draw(drawn: list[tuple[str, ClassDependency, ClassDependency]], convention: str) -> Figure:
    """A column a network; a second row at the largest η, where the first has an all-zero solution."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    more = any(not row.n_dependencies for _, row, _ in drawn)
    across, down = len(drawn), 2 if more else 1
    size = TEXT_WIDTH / 3 * 1.25
    figure = Figure(figsize=(size * across, (size + 0.35) * down), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False)
    for k, (name, row, largest) in enumerate(drawn):
        letter = _PANELS[name][0] if name in _PANELS else ""
        _panel(panels[0][k], row, f"{f'({letter}) ' if letter else ''}{name}, η = {_ETA:g}, {convention}")
        if more:
            _panel(panels[1][k], largest, "\n".join(textwrap.wrap(f"{name}: {_which(largest)}", 40)))
    return figure


def _panel(ax: Any, row: ClassDependency, title: str) -> None:
    count = draw_star(row, ax, most=6)
    more = f", {row.n_dependencies - count} more not shown" if row.n_dependencies > count else ""
    replaced = f"replaced {row.positive_accuracy_replaced:.0%}, " if row.n_dependencies else ""
    ax.set_title(title, loc="left", fontsize=7)
    ax.text(
        0.5,
        -0.02,
        f"{replaced}own logit {row.positive_accuracy:.0%} of the class's images\n{row.status}{more}",
        transform=ax.transAxes,
        ha="center",
        va="top",
        fontsize=6.5,
    )
