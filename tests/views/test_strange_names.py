"""What a user calls things reaches every figure, cell, file and line of every record as it is, and as nothing else."""

from __future__ import annotations

import csv
import io
import json
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pytest
from every_record import MADE
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from rankscope._base.facts import Fact, FactKind, about
from rankscope._base.frames import Column, Frame
from rankscope._base.records import Record
from rankscope._base.style import figure_style, whole_figure
from rankscope._base.text import one_line
from rankscope.cli.results import write_result
from rankscope.deficit import DependencyTable
from rankscope.features import Collection
from rankscope.jacobian import JacobianProfile
from rankscope.report import profile_page
from rankscope.report.deficit_page import deficit_page
from rankscope.reproduce import PaperComparison, Reproduction
from rankscope.reproduce.pictures import Picture

Kind = TypeVar("Kind", bound=Record)
STRANGE = [
    r"$\frac{a$",
    "<b>bold</b>",
    "a|b",
    "two\nlines",
    "x" * 300,
    "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\N{GRINNING FACE}",
    "_hidden",
    "=cmd()",
    "%s {0}",
    'say "hello", twice',
    "",
]
names = st.sampled_from(STRANGE) | st.text(max_size=20)
# fields that hold what a user calls a thing; everything else is a word of ours
FREE = {"name", "label", "model", "images", "names", "blocks", "start", "weights", "quantity", "how", "why", "init"}


@cache
def made(kind: str) -> Record:
    return MADE[kind]()


def called(value: Any, name: str) -> Any:
    """The record with every name of the user's replaced; those of one tuple stay apart by their number."""
    if isinstance(value, Column):
        texts = value.values if isinstance(value.values, tuple) else ()
        return replace(value, values=tuple(name if isinstance(v, str) else v for v in texts)) if texts else value
    if is_dataclass(value) and not isinstance(value, type | Fact):
        kept = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return replace(value, **{key: _of_field(key, each, name) for key, each in kept.items()})
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(called(_numbered(v, name, k), f"{name}{k}" if k else name) for k, v in enumerate(value))
    return value


def _numbered(value: Any, name: str, k: int) -> Any:
    return replace(value, name=f"{name}{k}" if k else name) if _is_named(value) else value


def _is_named(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type | Column | Fact) and hasattr(value, "name")


def _of_field(key: str, value: Any, name: str) -> Any:
    if key not in FREE:
        return called(value, name)
    if isinstance(value, str):
        return name
    if isinstance(value, tuple) and all(isinstance(v, str) for v in value):
        return tuple(f"{name}{k}" if k else name for k in range(len(value)))
    return called(value, name)


def pictures(name: str) -> list[Reproduction]:
    """The figures of the paper that show names, with made-up numbers."""
    compared = (PaperComparison(name, 1.0, 2.0, None, name, name),)
    curve = pd.DataFrame({"network": name, "percent_of_components": [1.0, 100.0], "top1": [0.2, 0.9]})
    ranks = pd.DataFrame({"network": name, "as_printed": "paper", "index": [1, 2], "rank": [5, 4], "min": [5, 3]})
    bars = pd.DataFrame(
        {"label": [name, f"{name}1"], "dimension_before": 3, "dimension_after": 2}
        | {f"rank_{when}_paper": 3 for when in ("before", "after")}
    )
    marks = {name: {"classification_dimension": 1, "ambient": 2, "accuracy_percent": 90.0}}
    ranked = {"letter": "a", "words": "ResNets", "as_printed": "paper", "background": "image"}
    table = called(made("DependencyTable"), name)
    assert isinstance(table, DependencyTable)
    solved = [(name, table[0], table[1]), (f"{name}1", replace(table[1], depends_on=(), weights=()), table[1])]
    drawn = [
        (curve, Picture("curves", {"marks": marks})),
        (curve, Picture("table", {"columns": ("network", "top1")})),
        (ranks, Picture("ranks", ranked)),
        (bars, Picture("components", {"tolerance": "paper", "limit": 4})),
        (curve, Picture.of_deficit(solved, "paper")),
    ]
    facts = (
        Fact(FactKind.NOTE, {"text": name}),
        Fact(FactKind.IMAGES_UNREADABLE, {"files": ((name, name), (f"{name}1", name))}),
        Fact(FactKind.FACTORY_WEIGHTS, {"folder": name, "file": name}),
        *about(name, [Fact(FactKind.NETWORK_LEFT_OUT, {"reason": name})]),
        *about(name, [Fact(FactKind.LAYER_NOT_MEASURED, {"where": name, "reason": name})]),
    )
    return [
        Reproduction("fig2", name, "paper", Frame.of(values), compared, name, {"a": name}, {}, picture, facts)
        for values, picture in drawn
    ]


class Words(HTMLParser):
    """Text and tags of a piece of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.count = Counter[str]()  # outside of figures, whose ticks depend on the room that names leave
        self._in_figure = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self._in_figure += tag == "svg"
        self.count[tag] += not self._in_figure

    def handle_endtag(self, tag: str) -> None:
        self._in_figure -= tag == "svg"

    def handle_data(self, data: str) -> None:
        self.text += data


def check(record: Record, name: str, folder: Path) -> None:
    _drawn(record)
    _printed(record)
    _kept(record, name, folder)


def _drawn(record: Record) -> None:
    with warnings.catch_warnings(), figure_style():
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        figure = whole_figure(record.plot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", dpi=40)
    ET.fromstring(buffer.getvalue())
    for text in figure.findobj(Text):
        said = text.get_text()
        assert text._preprocess_math(said)[1] is not True or "λ_k" in said or "mathdefault" in said, said


def _printed(record: Record) -> None:
    lines = str(record).split("\n")
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
    page = Words()
    page.feed(record._repr_html_())
    assert page.tags <= {"pre"}
    assert page.text == str(record)


def _kept(record: Record, name: str, folder: Path) -> None:
    json.loads(record.to_json())
    table = record.table()
    read = pd.read_csv(io.StringIO(table.to_csv(index=False), newline=""), keep_default_na=False, dtype=str)
    assert len(read) == len(table)
    for column in table.columns:
        for before, after in zip(table[column], read[column], strict=True):
            if isinstance(before, str):
                assert after == before.replace("\r\n", "\n") or "\r" in before
    if not isinstance(record, Collection):
        assert type(record).load(record.save(folder / "record")) == record


ALL = "".join(STRANGE[:4]) + "\N{RIGHT-TO-LEFT OVERRIDE}\N{GRINNING FACE}%s"


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", [ALL, "_hidden"])
def test_r5_every_record_takes_every_name(kind: str, name: str, tmp_path: Path) -> None:
    record = called(made(kind), name) if kind not in ("Collection", "Reproduction") else made(kind)
    check(record, name, tmp_path)


@pytest.mark.parametrize("name", [ALL, "_hidden", "x" * 300, "=cmd()"])
def test_r5_the_papers_figures_take_every_name(name: str, tmp_path: Path) -> None:
    for number, record in enumerate(pictures(name)):
        check(record, name, tmp_path / str(number))
        assert record.markdown().count("\n") == pictures("plain")[number].markdown().count("\n")


@settings(max_examples=10, deadline=None)
@given(kind=st.sampled_from(sorted({*MADE} - {"Collection", "Reproduction"})), name=names)
def test_r5_every_record_takes_any_text(kind: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(called(made(kind), name), name, tmp_path_factory.mktemp("any"))


FORMULAS = ["=cmd()", "+1+cmd()", "-2+cmd()", "@SUM(1)", "\t=cmd()"]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_spreadsheet_runs_no_name(name: str, tmp_path: Path) -> None:
    """Every CSV that is written: no cell begins a formula, numbers are as they were, other texts too."""
    table = pd.DataFrame({name: [-1.5, 2.0], "layer": [name, "conv1"], "any": [name, -3]}, index=pd.Index([name, "b"]))
    table.index.name = f"{name}s"
    write_result(
        tmp_path, "result", {}, {"plain": table, "kept": table.astype({"layer": "category"})}, None, index=True
    )
    for stem in ("plain", "kept"):
        with (tmp_path / f"{stem}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        quoted = f"'{name}"
        assert rows == [
            [f"{quoted}s", quoted, "layer", "any"],
            [quoted, "-1.5", quoted, quoted],
            ["b", "2.0", "conv1", "-3"],
        ]
    assert list(table["layer"]) == [name, "conv1"]  # the table itself is left alone
    for number, record in enumerate(pictures(name)):
        folder = record.save(tmp_path / str(number))
        for file in folder.glob("*.csv"):
            with file.open(newline="") as lines:
                cells = [cell for row in csv.reader(lines) for cell in row]
            assert f"'{name}" in cells
            assert not [c for c in cells if c.startswith(("=", "+", "@", "\t")) or c == name]
        assert type(record).load(folder) == record


def test_a_carriage_return_ends_no_row(tmp_path: Path) -> None:
    write_result(tmp_path, "result", {}, {"table": pd.DataFrame({"layer": ["a\r=cmd()", "two\nlines"]})}, None)
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["layer"], [r"a\r=cmd()"], ["two\nlines"]]


@pytest.mark.parametrize("name", [ALL, "_hidden", "x" * 300, "=cmd()", "</script>", "&amp;", "{{ 1 }}"])
def test_r5_every_page_takes_every_name(name: str) -> None:
    """A page shows a name as its text: no tag and no template of its own, and as many sections and tables as ever."""
    profile, table = (called(made(kind), name) for kind in ("JacobianProfile", "DependencyTable"))
    assert isinstance(profile, JacobianProfile)
    assert isinstance(table, DependencyTable)
    shown = (
        (profile_page(profile), profile_page(_record("JacobianProfile", JacobianProfile))),
        (
            deficit_page(table, model=name, source=name),
            deficit_page(_record("DependencyTable", DependencyTable), model="plain", source="plain"),
        ),
    )
    for strange, plain in shown:
        one, other = Words(), Words()
        one.feed(strange.html())
        other.feed(plain.html())
        assert one.count == other.count
        assert one_line(name) in one.text


def _record(kind: str, of: type[Kind]) -> Kind:
    found = made(kind)
    assert isinstance(found, of)
    return found


def test_one_line_changes_only_what_cannot_be_printed() -> None:
    assert one_line("plain $x$ <b> |") == "plain $x$ <b> |"
    assert one_line("a\nb\t\N{RIGHT-TO-LEFT OVERRIDE}") == r"a\nb\t\u202e"
    assert one_line("\udc80") == r"\udc80"


def test_names_are_where_they_belong() -> None:
    found = called(made("JacobianProfile"), "=cmd()")
    assert found.layers[0].name == "=cmd()"
    assert found.layers[1].name == "=cmd()1"
    assert isinstance(found.versions, Mapping)
