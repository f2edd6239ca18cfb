"""The independence deficit as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rankscope._base.facts import Fact
from rankscope._base.text import one_line
from rankscope.views.phrases import counted, own_verb
from rankscope.views.sentences import note

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["dependency_text", "exact_reasons"]

_COLUMNS = {
    "name": "name", "status": "status", "eta_over_eta_max": "eta/max", "n_dependencies": "n", "r2": "r2",
    "r2_held_out": "r2_held_out", "r2_null": "r2_null", "positive_accuracy": "acc",
    "positive_accuracy_replaced": "replaced", "top": "top",
}  # fmt: skip
_SHOWN = 20


def dependency_text(
    table: pd.DataFrame,
    *,
    classes: int,
    samples_used: str,
    eta: float | None,
    keep: float | None,
    samples: tuple[int, int],
    null: tuple[str, int],
    counts: Mapping[str, int],
    without_null: int,
    exact: Mapping[str, int],
    reasons: Mapping[str, str],
    facts: Sequence[Fact],
) -> str:
    """Cautions, the settings, how many classes have each status, and the first classes of the table.

    ``samples`` are those fitted and held out, ``null`` its kind and its permutations, ``exact`` counts the classes
    that are exact combinations of the others, by reason.
    """
    used = f"eta={eta:g}" if eta is not None else f"largest eta that keeps {keep:g} of the accuracy"
    ran = f"null {null[0]!r} with {counted(null[1], 'permutation')}" if null[1] else "no null was run"
    lines = [
        *map(note, facts),
        f"Independence deficit of {len(table):,} of {counted(classes, 'class', 'classes')}, samples used: "
        f"{samples_used}, {used}",
        f"{counted(samples[0], 'sample')} fitted, {samples[1]:,} held out, {ran}; "
        + ", ".join(f"{count:,} {status}" for status, count in counts.items()),
    ]
    if without_null:
        of = f"{counted(without_null, 'class', 'classes')} {own_verb(without_null, 'have')}"
        lines.append(
            f"Caution: {of} no null: too few of their samples can change places for one to reject anything, so "
            "dependence cannot be distinguished from noise."
        )
    if exact:
        lines.append(
            f"{sum(exact.values()):,} of {counted(len(table), 'class', 'classes')} are exact combinations of the "
            f"others: {'; '.join(reasons[reason] for reason in sorted(exact))}."
        )
    shown = table[list(_COLUMNS)].head(_SHOWN).rename(columns=_COLUMNS)
    shown[["name", "top"]] = shown[["name", "top"]].map(one_line)
    lines.append(shown.to_string(float_format=lambda v: f"{v:.3g}", formatters={"n": "{:,}".format}))
    if len(table) > _SHOWN:
        lines.append(f"… {counted(len(table) - _SHOWN, 'more class', 'more classes')} in .table()")
    return "\n".join(lines)


def exact_reasons(classes: int, logit_rank: int, feature_dimension: int | None) -> dict[str, str]:
    """Why a class is an exact combination of the others, in words that follow a colon.

    >>> exact_reasons(10, 9, None)["logits"]
    'the logits have numerical rank 9 for 10 classes'
    """
    return {
        "features": f"the features have {counted(feature_dimension or 0, 'dimension')} for {classes:,} classes",
        "logits": f"the logits have numerical rank {logit_rank:,} for {classes:,} classes",
        "samples": f"classes are fitted on fewer samples than {counted(classes - 1, 'unknown')}",
    }
