"""What a monitor has seen: one JSON line a monitored step, appended and flushed. A kill loses no earlier step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Entry", "History", "Moment"]

COLUMNS = ("step", "layer", "metric", "value", "samples")


@dataclass(frozen=True)
class Entry:
    """One number of one layer; NaN where it could not be measured."""

    layer: str
    metric: str
    value: float
    samples: int


@dataclass(frozen=True)
class Moment:
    """One monitored step: its numbers, and sentences on what could not be measured."""

    step: int
    entries: tuple[Entry, ...]
    events: tuple[str, ...] = ()

    def line(self) -> str:
        values = [
            {"layer": e.layer, "metric": e.metric, "value": _plain(e.value), "samples": e.samples} for e in self.entries
        ]
        return json.dumps({"step": self.step, "values": values, "events": list(self.events)}, allow_nan=False)


class History:
    """Moments in order of step, kept in a file where ``path`` is given.

    A step that was monitored before takes the place of its earlier moment and of all later ones: training went back to
    a checkpoint.
    """

    def __init__(self, path: Path | None = None, *, write: bool = True) -> None:
        self.path, self.moments = path, list[Moment]()
        self.unwritten = ""
        """Why the last line is not in the file; empty where it is."""
        self._write = write and path is not None
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OutputError(f"cannot read the history {str(path)!r}: {error.strerror}") from error
        whole = content.rfind(b"\n") + 1  # a kill may have cut the last line
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                self._place(_moment(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"line {number} of {str(path)!r} is no step of a monitor's history ({error}); give another path"
                ) from error
        if self._write and whole < len(content):
            try:
                os.truncate(path, whole)
            except OSError as error:
                raise OutputError(f"cannot write the history {str(path)!r}: {error.strerror}") from error

    def _place(self, moment: Moment) -> None:
        while self.moments and self.moments[-1].step >= moment.step:
            self.moments.pop()
        self.moments.append(moment)

    def add(self, moment: Moment) -> None:
        """Keep a moment. A file that cannot be written is said in ``unwritten``; nothing is raised."""
        self._place(moment)
        if not self._write or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                start = file.tell()
                try:
                    file.write(moment.line().encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(start)  # half a line would join the next one
                    raise
            self.unwritten = ""
        except OSError as error:
            self.unwritten = error.strerror or type(error).__name__

    def table(self) -> pd.DataFrame:
        """One row a number: step, layer, metric, value, samples."""
        import pandas as pd

        rows = [(m.step, e.layer, e.metric, e.value, e.samples) for m in self.moments for e in m.entries]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
            {"step": "int64", "samples": "int64", "value": "float64"}
        )

    @property
    def last_step(self) -> int | None:
        return self.moments[-1].step if self.moments else None


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _moment(found: Any) -> Moment:
    return Moment(int(found["step"]), tuple(_entries(found["values"])), tuple(map(str, found.get("events", ()))))


def _entries(values: Iterable[Any]) -> Iterable[Entry]:
    for value in values:
        yield Entry(str(value["layer"]), str(value["metric"]), float(value["value"]), int(value["samples"]))
