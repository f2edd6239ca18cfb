"""The paper's figures by kind, drawn from the numbers of a record and what else a figure needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rankscope._base.encoding import exact, frozen, read
from rankscope._base.records import ByValue
from rankscope.deficit import ClassDependency
from rankscope.reproduce.chains_figure import draw_chain
from rankscope.reproduce.components_figure import draw_components
from rankscope.reproduce.deficit_figure import draw_deficit
from rankscope.reproduce.partial_rank_figure import draw_ranks
from rankscope.reproduce.tables_figure import draw_curves, draw_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Picture", "draw"]


@dataclass(frozen=True, eq=False)
class Picture(ByValue):
    """Which figure a record draws, and the plain values that it needs beside the record's numbers."""

    kind: Literal["ranks", "chain", "components", "curves", "table", "deficit"]
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", frozen(dict(self.values)))

    @classmethod
    def of_deficit(cls, drawn: list[tuple[str, ClassDependency, ClassDependency]], as_printed: str) -> Picture:
        """Fig. 4: for each network the class under the paper's reading and under rankscope's."""
        rows = [{"network": name, "row": exact(row), "largest": exact(largest)} for name, row, largest in drawn]
        return cls("deficit", {"drawn": rows, "as_printed": as_printed})


def draw(picture: Picture, values: pd.DataFrame) -> Figure:
    """The figure of these numbers."""
    return _WAYS[picture.kind](values, picture.values)


def _deficit(_: pd.DataFrame, given: Mapping[str, Any]) -> Figure:
    drawn = [
        (each["network"], read(ClassDependency, each["row"]), read(ClassDependency, each["largest"]))
        for each in given["drawn"]
    ]
    return draw_deficit(drawn, given["as_printed"])


_WAYS: dict[str, Callable[[Any, Mapping[str, Any]], Figure]] = {
    "ranks": lambda values, given: draw_ranks(values, **given),
    "chain": lambda values, given: draw_chain(values, **given),
    "components": lambda values, given: draw_components(values, **given),
    "curves": lambda values, given: draw_curves(values, given["marks"]),
    "table": lambda values, given: draw_table(values[list(given["columns"])]),
    "deficit": _deficit,
}
