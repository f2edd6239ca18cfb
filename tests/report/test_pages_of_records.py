"""Pages of feature profiles, classification dimensions, comparisons and reproductions have the records' numbers."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.report.comparison_page import comparison_page
from rankscope.report.feature_section import classification_page, feature_page
from rankscope.report.page import Page, Table
from rankscope.reproduce import reproduce
from rankscope.reproduce.page import reproduction_page


def profile(seed: int) -> rs.FeatureProfile:
    torch.manual_seed(seed)
    return rs.feature_rank({"wide": torch.randn(60, 90), "narrow": torch.randn(60, 4)}, progress=False)


class Read(HTMLParser):
    """Headings, rows of tables, drawings, and items by their class."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.said: list[tuple[str, str]] = []
        self.drawings = 0
        self._inside: list[str] = []
        self.feed(page.html())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.drawings += tag == "svg"
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "li":
            self.said.append((dict(attrs).get("class") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {*self._inside}:
            self.rows[-1][-1] += data.strip()
        elif "li" in self._inside:
            kind, text = self.said[-1]
            self.said[-1] = (kind, text + data)


def test_features() -> None:
    found = profile(0)
    page = Read(feature_page(found, model="net <b>", data="x.npy", facts=[Fact(FactKind.TRAINING_MODE)]))
    for layer in found:
        row = next(row for row in page.rows if row[0] == layer.name)
        assert row[1:3] == [f"{layer.width:,}", f"{layer.pca_dimension:,}"]
        assert float(row[4]) == pytest.approx(layer.participation_ratio, rel=1e-3)
        assert row[-1] == layer.limited_by
    assert page.drawings == 2  # for a desk and for a phone
    assert [text for kind, text in page.said if kind == "caution"] == [
        "Caution: At wide the number of samples, not the network, limits the PCA dimension. More samples would raise "
        "it."
    ]
    assert any("training mode" in text for kind, text in page.said if kind == "meaning")


def test_classification() -> None:
    labels = torch.arange(60) % 3
    features = torch.randn(60, 5) + 4 * torch.eye(5)[labels]
    found = rs.classification_dimension(features, labels, nn.Linear(5, 3), progress=False)
    page = Read(classification_page(found, model=None, data=None))
    assert any(
        text.startswith(f"{found.dimension} of 5 principal components keep at least 95% of the accuracy: ")
        for _, text in page.said
    )
    assert found.interval is not None
    low, high = found.interval
    row = next(row for row in page.rows if len(row) == 8 and row[0].isdigit())
    assert row[:4] == [str(found.dimension), "5", f"[{low}, {high}]", f"{found.accuracy:.1%}"]
    curve = [row for row in page.rows if len(row) == 3 and row[0].isdigit()]
    assert [float(row[1]) for row in curve] == pytest.approx(found.curve.tolist(), abs=1e-3)


def test_comparison() -> None:
    found = rs.compare({"a": profile(0), "b": profile(1)})
    page = Read(comparison_page(found))
    for layer in found.layers:
        row = next(row for row in page.rows if row[0] == layer.layer)
        a, b = layer.values
        assert [float(cell) for cell in row[1:4]] == pytest.approx([a, b, b - a], rel=1e-2, abs=1e-2)
    assert page.drawings == 2


def test_reproduction(tmp_path: Path) -> None:
    found = reproduce("fig1d", scale="small", out=tmp_path, progress=False)
    page = Read(reproduction_page(found))
    rows = {row[0]: row for row in page.rows}
    for one in found.comparison:
        assert float(rows[one.quantity][2]) == pytest.approx(one.ours, abs=0.05)
    assert page.drawings == 1
    assert ("finding", found.disagreement) in page.said


def test_a_table_of_pandas() -> None:
    frame = pd.DataFrame({"a_b": [1, 2], "c": [float("nan"), 0.5], "d": [True, False], "e": [None, (1, 2)]})
    made = Table.of(frame, "t")
    assert made.head == ["a b", "c", "d", "e"]
    assert made.rows == [[1, None, True, None], [2, 0.5, False, "(1, 2)"]]
    assert [type(row[0]) for row in made.rows] == [int, int]
