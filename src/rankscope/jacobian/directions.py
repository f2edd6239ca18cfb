"""Which input directions a profile was measured along, as it keeps them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rankscope.slicing import Columns

__all__ = ["Directions"]


@dataclass(frozen=True)
class Directions:
    """K directions of the input space, as a value. Prints as a phrase.

    Attributes
    ----------
    kind : str
        ``"all"``, ``"patch"``, ``"sketch"`` …: the class of the columns, in lower case.
    count : int
        K.
    words : str
        What the columns say of themselves.
    """

    kind: str
    count: int
    words: str

    @property
    def random(self) -> bool:
        """Whether they are random directions of the whole input, and no coordinates."""
        return self.kind == "sketch"

    @classmethod
    def of(cls, columns: Columns, shape: tuple[int, ...]) -> Directions:
        """Those of inputs of this shape, without the batch dimension."""
        # directions without coordinates are random ones, whatever their class is called
        kind = "sketch" if columns.coordinates(shape) is None else type(columns).__name__.lower()
        return cls(kind, columns.count(shape), columns.describe())

    @classmethod
    def of_earlier_file(cls, text: str) -> Directions:
        """From the phrase, which is all that files of earlier versions hold.

        >>> Directions.of_earlier_file("8 random directions (seed 0) (K = 8)")
        Directions(kind='sketch', count=8, words='8 random directions (seed 0)')
        """
        found = re.fullmatch(r"(.*) \(K = (\d+)\)", text)
        words, count = (found[1], int(found[2])) if found else (text, 0)
        kinds = {"all input coordinates": "all", f"{count} random directions": "sketch"}
        return cls(next((k for start, k in kinds.items() if words.startswith(start)), "patch"), count, words)

    def __str__(self) -> str:
        return f"{self.words} (K = {self.count})"
