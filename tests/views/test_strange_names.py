"""What a user calls things reaches every figure, cell, file and line of every record as it is, and as nothing else."""

from __future__ import annotations

import io
import json
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from every_record import MADE
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from rankscope._base.facts import Fact
from rankscope._base.frames import Column, Frame
from rankscope._base.records import Record
from rankscope._base.style import figure_style, whole_figure
from rankscope._base.text import one_line
from rankscope.features import Collection
from rankscope.reproduce import Comparison, Reproduction
from rankscope.reproduce.pictures import Picture

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
    compared = (Comparison(name, 1.0, 2.0, None, name, name),)
    curve = pd.DataFrame({"network": name, "percent_of_components": [1.0, 100.0], "top1": [0.2, 0.9]})
    ranks = pd.DataFrame({"network": name, "as_printed": "paper", "index": [1, 2], "rank": [5, 4], "min": [5, 3]})
    bars = pd.DataFrame(
        {"label": [name, f"{name}1"], "dimension_before": 3, "dimension_after": 2}
        | {f"rank_{when}_paper": 3 for when in ("before", "after")}
    )
    marks = {name: {"classification_dimension": 1, "ambient": 2, "accuracy_percent": 90.0}}
    ranked = {"letter": "a", "words": "ResNets", "as_printed": "paper", "background": "image"}
    drawn = [
        (curve, Picture("curves", {"marks": marks})),
        (curve, Picture("table", {"columns": ("network", "top1")})),
        (ranks, Picture("ranks", ranked)),
        (bars, Picture("components", {"tolerance": "paper", "limit": 4})),
    ]
    return [
        Reproduction("fig2", name, "paper", Frame.of(values), compared, name, {"a": name}, {}, picture, (name,))
        for values, picture in drawn
    ]


class Words(HTMLParser):
    """Text and tags of a piece of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

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


def test_one_line_changes_only_what_cannot_be_printed() -> None:
    assert one_line("plain $x$ <b> |") == "plain $x$ <b> |"
    assert one_line("a\nb\t\N{RIGHT-TO-LEFT OVERRIDE}") == r"a\nb\t\u202e"
    assert one_line("\udc80") == r"\udc80"


def test_names_are_where_they_belong() -> None:
    found = called(made("JacobianProfile"), "=cmd()")
    assert found.layers[0].name == "=cmd()"
    assert found.layers[1].name == "=cmd()1"
    assert isinstance(found.versions, Mapping)
