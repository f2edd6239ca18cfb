"""A page is well-formed HTML: every tag closed, every id once, every link to something, everything said once."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope.report import Finding, Page, Section, Table, profile_page
from rankscope.report.bidi import isolated
from rankscope.report.deficit_page import deficit_page
from rankscope.report.table import Share

VOID = {"meta", "input", "br", "hr", "img", "link"}
NAMES = ("=cmd()", "日本語", "الفئة الأولى", "<b>bold</b>", "$x$", "great white shark, white shark, man-eater")


class Document(HTMLParser):
    """Open tags, ids, links and the texts of the hidden CSVs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.classes: list[str] = []
        self.csv: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [str(found["id"])] if "id" in found else []
        self.classes.append(found.get("class") or "")
        link = found.get("href") or found.get("xlink:href")
        self.links += [link] if link else []
        if self.open[-1:] == ["textarea"]:
            self.csv.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["textarea"]:
            self.csv[-1] += data


def of_profile() -> Page:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    return profile_page(rs.jacobian_rank(net, torch.randn(2, 6), progress=False, names=lambda i: NAMES[i]))


def of_deficit() -> Page:
    rng = np.random.default_rng(0)
    labels = np.arange(240) % len(NAMES)
    logits = rng.normal(size=(240, len(NAMES))) + 4 * np.eye(len(NAMES))[labels]
    return deficit_page(rs.independence_deficit(logits, labels, class_names=NAMES, permutations=3))


def of_two_sections() -> Page:
    table = Table("Ranks", ("layer", "rank"), [("stem", 3)], meaning="rank is the function rank.")
    said = [Finding("Found."), Finding("Mind it.", "caution"), Finding("A definition.", "meaning")]
    return Page("p", [Section("One", said, tables=[table]), Section("One", said, tables=[table, table])])


PAGES = {"profile": of_profile, "deficit": of_deficit, "two sections": of_two_sections}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_tags_close_ids_are_unique_and_links_arrive(page) -> None:
    found = Document(page().html())
    assert not found.wrong
    assert not found.open
    assert len(set(found.ids)) == len(found.ids)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert not [link for link in found.links if not link.startswith("#")]  # it needs nothing else
    assert "definitions" in found.ids


def test_cautions_and_definitions_are_said_once_and_links_are_apart() -> None:
    page = of_two_sections().html()
    for text in ("Found.", "Mind it.", "A definition.", "rank is the function rank."):
        assert page.count(text) == 1
    assert page.index("A definition.") > page.index('<section id="definitions">')
    assert Document(page).ids == ["at-one", "at-ranks", "at-one-2", "at-ranks-2", "at-ranks-3", "definitions"]


def test_five_findings_are_seen_and_the_others_open() -> None:
    said = [Finding(f"Finding {k}.") for k in range(7)] + [Finding(f"Caution {k}.", "caution") for k in range(6)]
    page = Page("p", [Section("s", said)]).html()
    assert page.index("Finding 4.") < page.index("2 more findings") < page.index("Finding 5.")
    assert page.index("Caution 4.") < page.index("1 more caution<") < page.index("Caution 5.")


def test_a_table_is_copied_with_all_digits_and_without_formulas() -> None:
    rows = [("=cmd()", 1280, 0.123456789, Share(0.9), None), ("a,b", -3, -1e-9, Share(0.05), "+1.0 cat")]
    table = Table("numbers", ("layer", "n", "@x", "share", "by"), rows)
    (text,) = Document(Page("p", [Section("s", tables=[table])]).html()).csv
    assert list(csv.reader(io.StringIO(text))) == [
        ["layer", "n", "'@x", "share", "by"],
        ["'=cmd()", "1280", "0.123456789", "0.9", ""],
        ["a,b", "-3", "-1e-09", "0.05", "'+1.0 cat"],
    ]


def test_shares_bounds_and_powers_of_ten_are_flush_right() -> None:
    rows = [("1", Share(0.047), "[3, 64]", "9.2e-05", ""), ("2", Share(1.0), "none", "–", "2 near τ")]
    cells = Table("t", tuple("abcde"), rows).cells()
    assert [flush for _, flush in cells[0]] == [False, True, True, True, False]
    assert [row[1][0] for row in cells] == ["4.7%", "100.0%"]


def test_a_name_from_right_to_left_does_not_turn_what_follows() -> None:
    assert str(isolated("שכבה (2), طبقة ثانية (3) <b>")) == "<bdi>שכבה</bdi> (2), <bdi>طبقة ثانية</bdi> (3) &lt;b&gt;"
    assert str(isolated("conv1 (2)")) == "conv1 (2)"
