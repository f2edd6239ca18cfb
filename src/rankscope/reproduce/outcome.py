"""What an experiment leaves: numbers, a figure, a comparison with the paper, and everything that led to them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rankscope._base.command import said
from rankscope._base.csv_text import csv_text
from rankscope._base.encoding import exact, frozen, plain
from rankscope._base.errors import OutputError
from rankscope._base.facts import Fact, FactKind, as_facts
from rankscope._base.files import write_whole
from rankscope._base.frames import Frame
from rankscope._base.json_files import json_text
from rankscope._base.lock import FolderLock
from rankscope._base.records import Record
from rankscope._base.style import figure_style, panels, whole_figure
from rankscope._base.text import one_line
from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.pictures import Picture, draw
from rankscope.views.sentences import sentence

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["Reproduction"]


@dataclass(frozen=True, eq=False, repr=False)
class Reproduction(Record):
    """One figure or table of the paper, measured again. Equal to itself after a file.

    Attributes
    ----------
    name, title : str
        As in ``EXPERIMENTS``, and the paper's own caption in short.
    as_printed : str
        ``paper`` (the text) or ``reference`` (the authors' code): which of the two is drawn and compared.
    numbers : Frame
        Every number, under both where they differ; ``values`` is the table.
    comparison : tuple of PaperComparison
        Beside the paper.
    disagreement : str
        In sentences: where the text and the authors' code differ, and by how much here.
    settings, provenance : mapping
        Everything that decides the numbers; versions and device.
    picture : Picture
        Which figure ``plot`` draws.
    facts : tuple of Fact
        What a reader has to know to trust the numbers; one about a single network has its name as ``network``.
        ``notes`` are their sentences.
    """

    name: str
    title: str
    as_printed: str
    numbers: Frame
    comparison: tuple[PaperComparison, ...]
    disagreement: str
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    picture: Picture
    facts: tuple[Fact, ...] = ()

    def __post_init__(self) -> None:
        for name in ("settings", "provenance"):
            object.__setattr__(self, name, frozen(dict(getattr(self, name))))

    @classmethod
    def from_earlier(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Earlier files say in words what are facts today."""
        if "notes" not in data:
            return data
        facts = as_facts(data["notes"], FactKind.EARLIER_NOTE)
        return {**{k: v for k, v in data.items() if k != "notes"}, "facts": [fact.to_dict() for fact in facts]}

    @property
    def notes(self) -> tuple[str, ...]:
        """The facts as sentences, the network in front where there are several."""
        return tuple(f"{f['network']}: {sentence(f)}" if "network" in f.values else sentence(f) for f in self.facts)

    @cached_property
    def values(self) -> pd.DataFrame:
        """Every number that was measured, as a table."""
        return self.numbers.pandas()

    def table(self) -> pd.DataFrame:
        """Every number that was measured; a copy of ``values``."""
        return self.values.copy()

    def comparison_table(self) -> pd.DataFrame:
        """One row a comparison."""
        import pandas as pd

        names = list(PaperComparison.__dataclass_fields__)
        return pd.DataFrame([asdict(c) for c in self.comparison], columns=names)

    def plot(self) -> Axes | NDArray[Any]:
        """The figure in the paper's form: its Axes, or an array of them where it has several."""
        with figure_style():
            axes = draw(self.picture, self.values).axes
        return axes[0] if len(axes) == 1 else panels(axes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: everything but the numbers themselves, which the CSV holds."""
        return {
            "schema_version": self.schema_version,
            "kind": self.kind_name(),
            "name": self.name,
            "title": self.title,
            "as_printed": self.as_printed,
            "settings": plain(self.settings),
            "comparison": [asdict(c) for c in self.comparison],
            "disagreement": self.disagreement,
            "facts": [fact.to_dict() for fact in self.facts],
            "notes": list(self.notes),
            "provenance": plain(self.provenance),
        }

    def save(self, path: str | Path) -> Path:
        """Write ``NAME.json``, CSV, figures and the comparison into a folder (made if absent); returns the folder.

        The same measurements give the same bytes. ``load`` reads the JSON, which holds every number exactly.
        """
        where = Path(path)
        record = {**self.to_dict(), "record": exact(self), **said()}
        written: dict[str, bytes | str] = {
            f"{self.name}.json": json_text(record, ensure_ascii=False) + "\n",
            f"{self.name}.csv": csv_text(self.values),
            "comparison.csv": csv_text(self.comparison_table()),
            "comparison.md": self.markdown(),
        }
        figure = whole_figure(self.plot())
        with figure_style():
            # no dates: they are all that would differ between two runs
            for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, metadata=metadata)
                written[f"{self.name}.{kind}"] = buffer.getvalue()
        with FolderLock(where):
            for name, content in written.items():
                write_whole(where / name, content)
        return where

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read back what ``save`` wrote: the folder or its ``NAME.json``.

        Raises
        ------
        OutputError
            When the file is missing, damaged, or of an earlier or later version.
        """
        found = Path(path)
        if found.is_dir():
            inside = sorted(found.glob("*.json"))
            if len(inside) != 1:
                raise OutputError(f"{str(found)!r} has {len(inside)} JSON files; give the one of the figure or table")
            found = inside[0]
        return super().load(found)

    def markdown(self) -> str:
        """The comparison as a page."""
        head = ["quantity", "paper", "ours", "theory"]
        head += ["what the paper prints", "what its code does", "what we did", "why they may differ"]
        rule = _row(["---"] * len(head))
        lines = [f"# {one_line(self.title)}", "", f"As printed: {self.as_printed}.", "", _row(head), rule]
        for c in self.comparison:
            numbers = map(_number, (c.paper, c.ours, c.theory))
            lines.append(_row([c.quantity, *numbers, c.printed or "–", c.code or "–", c.how, c.why]))
        lines += [
            "",
            "A dash under *paper* means that the paper shows only a curve, or nothing. A dash in a column of words "
            "means that nothing is known.",
            "",
            one_line(self.disagreement),
            "",
        ]
        lines += [one_line(f"- {note}") for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def __str__(self) -> str:
        width = max([8, *(len(one_line(c.quantity)) for c in self.comparison)])
        lines = [
            f"{one_line(self.title)} (as {self.as_printed})",
            f"{'':<{width}} {'paper':>9} {'ours':>9} {'theory':>9}",
        ]
        for c in self.comparison:
            cells = " ".join(f"{_number(v):>9}" for v in (c.paper, c.ours, c.theory))
            lines.append(f"{one_line(c.quantity):<{width}} {cells}")
        return "\n".join([*lines, one_line(self.disagreement), *(one_line(f"note: {note}") for note in self.notes)])

    __repr__ = __str__


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == int(value) else f"{value:.1f}"
