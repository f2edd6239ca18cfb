"""The sentences about several runs beside each other, each written once."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, first_few, own_verb

__all__ = ["COMPARISON_SENTENCES"]


def _differ(v: Values) -> str:
    each = "; ".join(f"{label}: {value}" for label, value in zip(v["labels"], v["values"], strict=True))
    return f"The runs differ in {v['what']} ({each})."


def _by_depth(v: Values) -> str:
    first = ", ".join(f"{name!r} of {label}" for label, name in zip(v["labels"], v["first"], strict=True))
    return f"The runs share no layer name. Layers are matched by their order: {first} is the first."


def _not_in_all(v: Values) -> str:
    count = len(v["names"])
    return f"{counted(count, 'layer')} {own_verb(count, 'be')} not in every run: {first_few(v['names'])}."


def _images_unknown(_: Values) -> str:
    return (
        "The images have numbers and no names, so it is not known whether the runs saw the same ones. There is no "
        "paired interval; give same_images=True where they are the same."
    )


COMPARISON_SENTENCES: Sentences = {
    FactKind.RUNS_DIFFER: _differ,
    FactKind.MATCHED_BY_DEPTH: _by_depth,
    FactKind.NOT_IN_ALL: _not_in_all,
    FactKind.IMAGES_UNKNOWN: _images_unknown,
}
