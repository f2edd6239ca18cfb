"""Facts that are part of a sentence: how tangents were pushed, what certifies a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rankscope._base.facts import Fact, FactKind

__all__ = ["PHRASES", "phrase", "shapes_of", "span"]


def phrase(fact: Fact) -> str:
    """The fact as words inside a sentence; a text as it is.

    >>> phrase(Fact(FactKind.LINEARISED, {"name": "vmap(jvp)", "difference": 5e-7}))
    'linearised network; agrees with vmap(jvp) to 5e-07'
    """
    if fact.kind in PHRASES:
        return PHRASES[fact.kind](fact.values)
    return str(fact["text"])


PHRASES: dict[FactKind, Callable[[Mapping[str, Any]], str]] = {
    FactKind.PUSHED: lambda v: str(v["name"]),
    FactKind.LINEARISED: lambda v: f"linearised network; agrees with {v['name']} to {max(v['difference'], 1e-16):.0e}",
    FactKind.KEPT_IMAGES: lambda v: "read from finished images",
    FactKind.PROBES: lambda v: f"{v['probes']} float64 probes, failure probability {_power(v['failure'])}",
    FactKind.SCALED_PROBES: lambda v: (
        f"an estimate: the float32 error, measured with {v['probes']} probes and scaled to float64"
    ),
    FactKind.NARROW_PROBES: lambda v: (
        f"an estimate: {v['probes']} probes, but the model casts to lower precision inside"
    ),
    FactKind.TWO_PRECISIONS: lambda v: (
        f"float32 against float64 on {v['probes']} Gaussian tangents; each bound fails with probability "
        f"{_power(v['failure'])}"
    ),
    FactKind.NOT_IN_BOTH: lambda v: "none: the component does not run in both precisions",
    FactKind.NOT_IN_FLOAT64: lambda v: "none: the model does not run in float64",
    FactKind.NOT_CERTIFIED: lambda v: "not asked for",
}


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def span(least: float, most: float, form: str = ",") -> str:
    """One number, or the smallest and the largest of several.

    >>> span(24, 24), span(24, 1060)
    ('24', '24–1,060')
    """
    return format(most, form) if least == most else f"{least:{form}}–{most:{form}}"


def shapes_of(shapes: Iterable[Sequence[int]]) -> str:
    """Shapes in words; of more than three the first and how many more.

    >>> shapes_of([(5, 8), (7, 8)])
    '5×8 and 7×8'
    """
    each = ["×".join(map(str, shape)) for shape in shapes]
    if len(each) > 3:
        return f"{', '.join(each[:2])} and {len(each) - 2:,} more"
    return " and ".join([", ".join(each[:-1]), each[-1]]) if len(each) > 1 else "".join(each)
