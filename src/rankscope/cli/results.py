"""A record as files: JSON, CSV, PNG and SVG under one name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.command import said
from rankscope._base.csv_text import csv_text
from rankscope._base.facts import Fact
from rankscope._base.files import make_folder, write_whole
from rankscope._base.json_files import write_json
from rankscope._base.style import figure_style, whole_figure
from rankscope.views.sentences import note

if TYPE_CHECKING:
    import pandas as pd

    from rankscope.report import Page

__all__ = ["as_json_text", "print_facts", "print_result", "print_written", "write_figure", "write_result"]

_KINDS = ("json", "csv", "png", "svg")


def as_json_text(record: Mapping[str, Any]) -> str:
    """JSON that every reader takes: a NaN or infinity would be an error, not a word of its own.

    With the command that runs, as the files of results have it.
    """
    return json.dumps({**record, **said()}, indent=1, allow_nan=False)


def write_result(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    axes: Any,
    *,
    index: bool = False,
    page: Page | None = None,
) -> None:
    """``name.json`` with a checksum, one CSV for each of ``tables`` (by file name), ``name.png`` and ``name.svg``.

    A ``page`` is ``name.html``.
    """
    make_folder(folder)
    write_json(folder / f"{name}.json", {**record, **said()})
    for stem, table in tables.items():
        write_whole(folder / f"{stem}.csv", csv_text(table, index=index))
    if axes is not None:
        write_figure(folder, name, lambda: axes)
    if page is not None:
        write_whole(folder / f"{name}.html", page.html())


def write_figure(folder: Path, name: str, plot: Callable[[], Any]) -> None:
    """``name.png`` and ``name.svg`` of the axes, array of axes or figure that ``plot`` draws."""
    with figure_style():
        figure = whole_figure(plot())
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            # no date: the same result gives the same file
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
            write_whole(folder / f"{name}.{kind}", buffer.getvalue())


def print_facts(facts: Iterable[Fact]) -> None:
    """A line for each."""
    for fact in facts:
        print(note(fact))


def print_result(
    result: object,
    record: Mapping[str, Any],
    folder: Path | None,
    *files: str,
    as_json: bool,
    said: Iterable[Fact] = (),
    lines: Iterable[str] = (),
) -> bool:
    """The record as JSON alone, or the result in words, facts and lines besides, and where the files are.

    Returns whether it was words, which more lines may follow.
    """
    if as_json:
        print(as_json_text(record))
        return False
    print(result)
    print_facts(said)
    for line in lines:
        print(line)
    if folder is not None:
        print_written(folder, *files)
    return True


def print_written(folder: Path, *files: str) -> None:
    """The last line of a result; a file without an ending has four kinds."""
    names = [f"{file}.{kind}" for file in files for kind in _KINDS if "." not in file]
    names += [file for file in files if "." in file]
    print(f"written: {', '.join(names)} in {folder}")
