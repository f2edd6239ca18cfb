"""Fig. 4: classes whose logit a few other classes decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankscope._base.errors import DataError
from rankscope._base.facts import Fact, FactKind, about
from rankscope._base.frames import Frame
from rankscope._base.provenance import device_name, versions
from rankscope.deficit import ClassDependency, DependencyTable, Exactness, independence_deficit
from rankscope.reproduce.deficit_rows import ETA, KEEP, PANELS, SOLVED, compare, keeps, shown_class, solution
from rankscope.reproduce.measured import Prepared, collection, data_facts, pass_over, prepared
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.pictures import Picture
from rankscope.reproduce.settings import Settings

__all__ = ["DEFICIT_NETWORKS", "deficit"]

DEFICIT_NETWORKS = tuple(PANELS)
_PERMUTATIONS = {"full": 5, "small": 1}  # behind the null


def deficit(name: str, settings: Settings) -> Reproduction:
    """Solve for every class of every network under both conventions, one part each.

    Raises
    ------
    DataError
        When the logits of no network can be solved for; one of several is left out with a note.
    """
    import pandas as pd

    frames, comparison, facts, abouts = [], [], [], []
    drawn: list[tuple[str, ClassDependency, ClassDependency]] = []
    counts: list[str] = []
    left_out: list[tuple[str, str]] = []
    gap: float | None = None
    for one in prepared(settings, DEFICIT_NETWORKS):
        over = pass_over(one)
        label = one.network.name
        try:
            tables = {c: DependencyTable.from_dict(_solved(one, c)) for c in SOLVED}
        except DataError as error:
            left_out.append((label, str(error)))
            continue
        for as_printed, table in tables.items():
            frame = table.table().reset_index().drop(columns=["trivial"])
            frame.insert(0, "as_printed", as_printed)
            frame.insert(0, "network", label)
            frames.append(frame)
        chosen = tables[settings.as_printed]
        gap = chosen.tol
        row = shown_class(chosen, label)
        largest = shown_class(tables["largest-eta"], label)
        drawn.append((label, row, largest))
        used = {c: [r for r in t if r.n_dependencies] for c, t in tables.items()}
        counts.append(
            f"{label} {len(used['paper'])} against {len(used['reference'])} of {chosen.n_classes}"
            f" (median number of others {_median(used['paper'])} against {_median(used['reference'])})"
        )
        comparison += compare(one, chosen, row, settings.as_printed)
        comparison += compare(one, tables["largest-eta"], largest, "largest-eta")
        facts += data_facts(one, over)
        if not row.n_dependencies:
            zero = {"eta": ETA, "as_printed": settings.as_printed, "largest": max(r.eta_max for r in chosen)}
            zero |= {"shown": largest.eta, "kept": keeps(largest)}
            facts += about(label, [Fact(FactKind.ALL_ZERO, zero)])
        # decided for each class from the logits themselves: fewer features than classes need not touch a class
        exact = sum(row.trivial in (Exactness.FEATURES, Exactness.LOGITS) for row in tables["paper"])
        if exact:
            sizes = {"features": chosen.feature_dimension, "classes": chosen.n_classes, "dependent": exact}
            facts += about(label, [Fact(FactKind.LOGITS_DEPENDENT, sizes)])
        abouts.append(one.about())
    if not drawn:
        settings.place.network = None
        reasons = "; ".join(f"{label}: {why}" for label, why in left_out)
        raise DataError(f"no network is left: {reasons}; give weights of trained networks")
    for label, why in left_out:
        facts += about(label, [Fact(FactKind.NETWORK_LEFT_OUT, {"reason": why}, caution=True)])
    values = pd.concat(frames, ignore_index=True)
    return Reproduction(
        name=name,
        title="Fig. 4: independence deficit",
        as_printed=settings.as_printed,
        numbers=Frame.of(values),
        comparison=tuple(comparison),
        disagreement=(
            "The text takes the mean over all images (here with an intercept, which Eq. 12 lacks). The authors' code "
            f"fits each class on its own positive images. Both use η = {ETA:g}. The numbers of classes with any other "
            f"class in their solution are, text against code: {'; '.join(counts)}."
        ),
        settings={
            **settings.to_dict(),
            "eta": ETA,
            "solved": SOLVED[settings.as_printed][0],
            "on": solution(settings.as_printed),
            "keep": KEEP,
            "tolerance": gap,
            "permutations": _PERMUTATIONS[settings.scale],
            "networks": abouts,
        },
        provenance={**versions(), "device": device_name(settings.device)},
        facts=tuple(dict.fromkeys(facts)),
        picture=Picture.of_deficit(drawn, settings.as_printed),
    )


def _solved(one: Prepared, as_printed: str) -> dict[str, Any]:
    name, eta = SOLVED[as_printed]

    def compute(_: Path) -> dict[str, Any]:
        found = collection(one)
        table = independence_deficit(
            found.logits,
            found.labels,
            eta=eta,
            samples_used=name,
            class_names=one.folders.names,
            feature_dimension=int(found.features.shape[1]),
            held_out=0,  # the text and the code fit all the images
            permutations=_PERMUTATIONS[one.settings.scale],
            seed=one.settings.seed,
            device=one.settings.device,
            progress=False,
        )
        return table.to_dict()

    given = {**one.pass_identity, "eta": eta, "samples": pass_over(one)["samples"], "classes": list(one.folders.names)}
    found: dict[str, Any] = one.parts.keep(f"deficit-{as_printed}", given, compute)
    return found


def _median(rows: list[ClassDependency]) -> int:
    counts = sorted(r.n_dependencies for r in rows)
    return counts[len(counts) // 2] if counts else 0
