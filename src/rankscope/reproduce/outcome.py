"""What an experiment leaves: numbers, a figure, a comparison with the paper, and everything that led to them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.files import make_folder, write_whole
from rankscope._base.style import figure_style, whole_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["SCHEMA_VERSION", "Comparison", "Reproduction"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """One number of ours beside the paper's.

    Attributes
    ----------
    quantity : str
        What is compared, with the network or layer it belongs to.
    paper : float or None
        What the paper prints; None where it shows a curve alone.
    ours : float or None
        What was measured; None where it could not be.
    theory : float or None
        What a closed form or an exact count gives, where there is one.
    convention : str
        How ours was counted.
    why : str
        Why the two may differ.
    """

    quantity: str
    paper: float | None
    ours: float | None
    theory: float | None
    convention: str
    why: str


@dataclass(frozen=True, eq=False)
class Reproduction:
    """One figure or table of the paper, measured again.

    Attributes
    ----------
    name, title : str
        As in ``EXPERIMENTS``, and the paper's own caption in short.
    convention : str
        ``paper`` or ``reference``: which of the two is drawn and compared.
    values : pandas.DataFrame
        Every number, under both conventions where they differ.
    comparison : tuple of Comparison
        Beside the paper.
    disagreement : str
        Two sentences: where the text and the authors' code differ, and by how much here.
    settings, provenance : mapping
        Everything that decides the numbers; versions and device.
    notes : tuple of str
        What a reader has to know to trust the numbers.
    """

    name: str
    title: str
    convention: str
    values: pd.DataFrame
    comparison: tuple[Comparison, ...]
    disagreement: str
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    _draw: Callable[[pd.DataFrame], Figure] | None = field(default=None, repr=False)

    def table(self) -> pd.DataFrame:
        """Every number that was measured."""
        return self.values

    def comparison_table(self) -> pd.DataFrame:
        """One row a comparison."""
        import pandas as pd

        names = list(Comparison.__dataclass_fields__)
        return pd.DataFrame([asdict(c) for c in self.comparison], columns=names)

    def plot(self) -> Axes | NDArray[Any]:
        """The figure in the paper's form: its Axes, or an array of them where it has several."""
        assert self._draw is not None
        with figure_style():
            axes = self._draw(self.values).axes
        return axes[0] if len(axes) == 1 else np.array(axes, dtype=object)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: everything but the numbers themselves, which the CSV holds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "reproduction",
            "name": self.name,
            "title": self.title,
            "convention": self.convention,
            "settings": dict(self.settings),
            "comparison": [asdict(c) for c in self.comparison],
            "disagreement": self.disagreement,
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def to_json(self) -> str:
        """``to_dict`` as text; the same measurements give the same text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, folder: str | Path) -> tuple[str, ...]:
        """Write every file into ``folder`` and return their names. The same measurements give the same bytes."""
        where = make_folder(Path(folder))
        written: dict[str, bytes | str] = {
            f"{self.name}.json": self.to_json(),
            f"{self.name}.csv": self.values.to_csv(index=False),
            "comparison.csv": self.comparison_table().to_csv(index=False),
            "comparison.md": self.markdown(),
        }
        figure = whole_figure(self.plot())
        with figure_style():
            # no dates: they are all that would differ between two runs
            for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, metadata=metadata)
                written[f"{self.name}.{kind}"] = buffer.getvalue()
        for name, content in written.items():
            write_whole(where / name, content)
        return tuple(written)

    def markdown(self) -> str:
        """The comparison as a page."""
        head = ["quantity", "paper", "ours", "theory", "convention", "why they may differ"]
        lines = [f"# {self.title}", "", f"Convention: {self.convention}.", "", _row(head), _row(["---"] * 6)]
        for c in self.comparison:
            lines.append(_row([c.quantity, *map(_number, (c.paper, c.ours, c.theory)), c.convention, c.why]))
        lines += ["", "A dash under *paper*: it shows a curve or nothing at that place.", "", self.disagreement, ""]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def __str__(self) -> str:
        width = max([8, *(len(c.quantity) for c in self.comparison)])
        lines = [f"{self.title} (as {self.convention})", f"{'':<{width}} {'paper':>9} {'ours':>9} {'theory':>9}"]
        for c in self.comparison:
            cells = " ".join(f"{_number(v):>9}" for v in (c.paper, c.ours, c.theory))
            lines.append(f"{c.quantity:<{width}} {cells}")
        return "\n".join([*lines, self.disagreement, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == int(value) else f"{value:.1f}"
