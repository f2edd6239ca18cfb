"""Which input directions a profile was measured along, as it keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankscope._base.facts import Fact, FactKind
from rankscope.slicing import ColumnsByShape
from rankscope.views.phrases import span

__all__ = ["Directions", "several_sizes"]


@dataclass(frozen=True)
class Directions:
    """K directions of the input space, as a value. Prints as a phrase.

    Attributes
    ----------
    kind : str
        ``"all"``, ``"patch"``, ``"sketch"`` …: the class of the columns, in lower case.
    count : int
        K; the largest, where samples of several shapes have several.
    words : str
        What the columns say of themselves.
    counts : tuple of int
        K of every sample, where they differ; else empty.
    """

    kind: str
    count: int
    words: str
    counts: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """As it stands above a figure.

        >>> Directions("all", 64, "all input coordinates").title
        'Full Jacobian (K = 64)'
        """
        return str(replace(self, words="Full Jacobian")) if self.kind == "all" else str(self)

    @property
    def random(self) -> bool:
        """Whether they are random directions of the whole input, and no coordinates."""
        return self.kind == "sketch"

    @property
    def least(self) -> int:
        """The smallest K of all samples."""
        return min(self.counts, default=self.count)

    @classmethod
    def of(cls, columns: ColumnsByShape, shapes: Sequence[tuple[int, ...]]) -> Directions:
        """Those of inputs of these shapes, one per sample, without the batch dimension."""
        kinds = dict.fromkeys(_kind(columns, shape) for shape in shapes)
        counts = tuple(columns.count(shape) for shape in shapes)
        words = ", or ".join(dict.fromkeys(columns.of(shape).describe() for shape in shapes))
        kind = next(iter(kinds)) if len(kinds) == 1 else "several"
        return cls(kind, max(counts), words, counts if len(set(counts)) > 1 else ())

    @classmethod
    def of_earlier_file(cls, text: str) -> Directions:
        """From the phrase, which is all that files of earlier versions hold.

        >>> Directions.of_earlier_file("8 random directions (seed 0) (K = 8)")
        Directions(kind='sketch', count=8, words='8 random directions (seed 0)', counts=())
        """
        found = re.fullmatch(r"(.*) \(K = (\d+)\)", text)
        words, count = (found[1], int(found[2])) if found else (text, 0)
        kinds = {"all input coordinates": "all", f"{count} random directions": "sketch"}
        return cls(next((k for start, k in kinds.items() if words.startswith(start)), "patch"), count, words)

    def __str__(self) -> str:
        return f"{self.words} (K = {span(self.least, self.count)})"


def _kind(columns: ColumnsByShape, shape: tuple[int, ...]) -> str:
    # directions without coordinates are random ones, whatever their class is called
    chosen = columns.of(shape)
    return "sketch" if chosen.coordinates(shape) is None else type(chosen).__name__.lower()


def several_sizes(directions: Directions, shapes: Sequence[tuple[int, ...]]) -> Fact:
    """That samples have several shapes, with the smallest and the largest K."""
    values = {"shapes": tuple(dict.fromkeys(shapes)), "least": directions.least, "most": directions.count}
    return Fact(FactKind.SEVERAL_SIZES, values)
