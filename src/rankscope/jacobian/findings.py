"""What the measurers of several processes have shown of samples of one shape, as one process would have shown it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from rankscope._base.facts import Fact, FactKind, gist
from rankscope.jacobian.batch import BatchMeasurer
from rankscope.slicing.apart import worst, worst_known

__all__ = ["Findings", "Shown", "deduplicated", "merged"]

# said once of a shape, at the first image that shows it
_ONCE = {
    FactKind.UNDERFLOW,
    FactKind.OVERFLOW,
    FactKind.NO_ESTIMATE,
    FactKind.SOME_DISAGREE,
    FactKind.CUSTOM_BACKWARD,
    FactKind.WAY_GIVEN_UP,
}


@dataclass(frozen=True)
class Shown:
    """What holds for all samples of one shape."""

    facts: tuple[Fact, ...]
    failed: tuple[Fact, ...]
    way: Fact
    adjoint: float | None
    certificate: Fact
    chunk: int


@dataclass
class Findings:
    """The same of one process, each fact with the number of the image that showed it; ``look`` after every batch."""

    facts: list[tuple[int, Fact]] = field(default_factory=list)
    failed: list[tuple[int, Fact]] = field(default_factory=list)
    shown: Shown | None = None

    def look(self, measurer: BatchMeasurer, index: int, seen: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """Take in what is new after the facts of both kinds that were seen; returns how many there are now.

        ``index`` is -1 for what the first sample of the shape shows.
        """
        derivative, (facts, failed) = measurer.derivative, seen
        self.facts += [(index, fact) for fact in derivative.facts[facts:]]
        self.failed += [(index, fact) for fact in derivative.failed_methods[failed:]]
        if measurer.method is not None:
            before = 0 if self.shown is None else self.shown.chunk
            chunk = max(before, measurer.chunk)
            self.shown = Shown((), (), measurer.way, measurer.adjoint, measurer.certificate, chunk)
        return len(derivative.facts), len(derivative.failed_methods)


def merged(found: Sequence[Findings]) -> Shown | None:
    """What all processes have shown of one shape; ``None`` where none has measured a sample of it."""
    shown = [one.shown for one in found if one.shown is not None]
    if not shown:
        return None
    chunk = max(one.chunk for one in shown)
    # what was not comparable speaks for the shape where nothing else was measured
    shown = [one for one in shown if one.certificate.kind is not FactKind.NO_COMMON_PATH] or shown
    facts = sorted((pair for one in found for pair in one.facts), key=lambda pair: pair[0])
    failed = sorted((pair for one in found for pair in one.failed), key=lambda pair: pair[0])
    way = next((one.way for one in shown if one.way.kind is not FactKind.LINEARISED), shown[0].way)
    if way.kind is FactKind.LINEARISED:
        difference = worst(one.way["difference"] for one in shown)
        way = Fact(FactKind.LINEARISED, {"name": way["name"], "difference": difference})
    return Shown(
        tuple(deduplicated((fact for _, fact in facts), once=_ONCE)),
        tuple(deduplicated((fact for _, fact in failed), once=_ONCE)),
        way,
        worst_known(one.adjoint for one in shown),
        shown[0].certificate,
        chunk,
    )


def deduplicated(facts: Iterable[Fact], once: Collection[FactKind] = ()) -> list[Fact]:
    """The first of those that differ by rounding at most, and of the kinds in ``once`` the first of all.

    >>> found = [Fact("note", {"text": "a"}), Fact("note", {"text": "b"}), Fact("note", {"text": "a"})]
    >>> [fact["text"] for fact in deduplicated(found)], len(deduplicated(found, {FactKind.NOTE}))
    (['a', 'b'], 1)
    """
    kept: dict[Hashable, Fact] = {}
    for fact in facts:
        kept.setdefault(fact.kind if fact.kind in once else gist(fact), fact)
    return list(kept.values())
