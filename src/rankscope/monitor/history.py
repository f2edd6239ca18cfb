"""What a monitor has seen: one JSON line a monitored step, appended and flushed. A kill loses no earlier step."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import OutputError, type_and_line
from rankscope._base.files import CHECKSUM, append_whole, digest_of_bytes
from rankscope._base.lock import HELD, NO_LOCKS

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no POSIX: two monitors of one file are not noticed
    fcntl = None

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "OF_TRAINERS", "Entry", "History", "Moment", "is_history"]

COLUMNS = ("step", "layer", "metric", "value", "samples")
OF_TRAINERS = "rank_history.jsonl"  # the file in which a trainer's callback keeps it
_BEGINS = b'{"step": '


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
        said = {"step": self.step, "values": values, "events": list(self.events)}
        return json.dumps({**said, CHECKSUM: _digest(said)}, allow_nan=False)

    @classmethod
    def of(cls, line: str | bytes) -> Moment:
        """Read back what ``line`` gave; raises ``ValueError`` for anything else."""
        try:
            found = json.loads(line)
            kept = found.pop(CHECKSUM, None)  # absent from lines of earlier versions
            if kept is not None and kept != _digest(found):
                raise ValueError("it was changed: its content does not have the checksum it was written with")
            entries = tuple(_entries(found["values"]))
            return cls(int(found["step"]), entries, tuple(map(str, found.get("events", ()))))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(type_and_line(error)) from error


class History:
    """Moments in order of step, kept in a file where ``path`` is given.

    A step that was monitored before takes the place of its earlier moment and of all later ones: training went back to
    a checkpoint.

    Raises
    ------
    OutputError
        For a file that is no history, that cannot be read or written, or that another monitor writes.
    """

    def __init__(self, path: Path | None = None, *, write: bool = True) -> None:
        self.path, self.moments = path, list[Moment]()
        self.unwritten = ""
        """Why the last moments are not in the file; empty where they are."""
        self._write = write and path is not None
        self._file: io.FileIO | None = None
        self._waiting: list[Moment] = []
        if path is None:
            return
        there = path.exists()
        if self._write:
            self.open()
        if there or not self._write:
            self._read(path)

    @classmethod
    def of_process(cls, path: Path | None, *, writes: bool) -> History:
        """The history of one of several processes: the one that ``writes`` makes the file, which others read if it is
        there. Where it is not, training begins, and they go on without.
        """
        return cls(path if path is None or writes or path.exists() else None, write=writes)

    # ---- the file ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the file, so that no other monitor writes it, until ``close``."""
        if self._file is not None or not self._write:
            return
        assert self.path is not None
        file: io.FileIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = io.FileIO(self.path, "ab")
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if file is not None and error.errno in NO_LOCKS:
                self._file = file  # a file system without locks
                return
            if file is not None:
                file.close()
            why = error.strerror or type(error).__name__
            if error.errno in HELD and file is not None:
                why = "another monitor writes it; close that one first, or give another path"
            raise OutputError(f"cannot write the history {str(self.path)!r}: {why}") from error
        self._file = file

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            self.close()
            raise OutputError(f"cannot read the history {str(path)!r}: {error.strerror}") from error
        whole = content.rfind(b"\n") + 1
        try:
            for number, line in enumerate(content[:whole].splitlines(), 1):
                self._place(_of_line(path, number, line))
            tail = content[whole:]
            # a kill cuts the last line; anything else that ends without a newline is another's file
            if tail and not tail.startswith(_BEGINS[: len(tail)]):
                _of_line(path, content.count(b"\n") + 1, tail)
        except OutputError:
            self.close()
            raise
        if tail and self._write:
            self._drop(path, whole)

    def _drop(self, path: Path, size: int) -> None:
        try:
            os.truncate(path, size)
        except OSError as error:
            self.close()
            raise OutputError(f"cannot write the history {str(path)!r}: {error.strerror}") from error

    # ---- moments -------------------------------------------------------------------------------------------------

    def _place(self, moment: Moment) -> None:
        while self.moments and self.moments[-1].step >= moment.step:
            self.moments.pop()
        self.moments.append(moment)

    def add(self, moment: Moment) -> None:
        """Keep a moment. A file that cannot be written is said in ``unwritten``, and is made up for with the next."""
        self._place(moment)
        if not self._write:
            return
        self._waiting.append(moment)
        try:
            self._append()
        except (OSError, OutputError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.unwritten = reason or type(error).__name__
        else:
            self._waiting, self.unwritten = [], ""

    def _append(self) -> None:
        if self._file is not None and not os.fstat(self._file.fileno()).st_nlink:  # someone removed the file
            self.close()
            self._waiting = list(self.moments)
        self.open()
        assert self._file is not None
        at = self._file.fileno()
        lines = b"".join(moment.line().encode() + b"\n" for moment in self._waiting)
        append_whole(at, lines, os.fstat(at).st_size)

    def back_to(self, step: int, moments: Iterable[Moment]) -> None:
        """Forget what was seen at ``step`` and later; take in what a checkpoint kept and the file lacks."""
        kept = {moment.step: moment for moment in self.moments if moment.step < step}
        lacking = {moment.step: moment for moment in moments if moment.step < step and moment.step not in kept}
        self.moments = [kept[at] for at in sorted(kept)]
        if not lacking:
            return
        first = min(lacking)
        again = sorted((at, moment) for at, moment in (kept | lacking).items() if at >= first)
        for _, moment in again:
            self.add(moment)

    def table(self) -> pd.DataFrame:
        """One row a number: step, layer, metric, value, samples."""
        import pandas as pd

        rows = [(m.step, e.layer, e.metric, e.value, e.samples) for m in self.moments for e in m.entries]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
            {"step": "int64", "samples": "int64", "value": "float64"}
        )

    @property
    def next_step(self) -> int:
        """The step after the last that was monitored."""
        return self.moments[-1].step + 1 if self.moments else 0


def is_history(path: Path) -> bool:
    """Whether the first line of a file is a step that a monitor saw."""
    try:
        with path.open("rb") as file:
            Moment.of(file.readline())
    except (OSError, ValueError):
        return False
    return True


def _digest(said: dict[str, Any]) -> str:
    return digest_of_bytes(json.dumps(said, sort_keys=True, separators=(",", ":")))


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _of_line(path: Path, number: int, line: bytes) -> Moment:
    try:
        return Moment.of(line)
    except ValueError as error:
        raise OutputError(
            f"line {number} of {str(path)!r} is no step of a monitor's history ({error}); give another path"
        ) from error


def _entries(values: Iterable[Any]) -> Iterable[Entry]:
    for value in values:
        yield Entry(str(value["layer"]), str(value["metric"]), float(value["value"]), int(value["samples"]))
