"""Sentences of a deficit page are true of its own table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rankscope as rs
from rankscope.deficit import Status
from rankscope.report.deficit_page import deficit_findings, deficit_page


@pytest.fixture(scope="module")
def table():
    """Class 3 is nearly the sum of 0 and 1; all others are independent apart from their means."""
    torch.manual_seed(0)
    labels = torch.arange(500) % 5
    logits = torch.randn(500, 5, dtype=torch.float64) + 6 * torch.nn.functional.one_hot(labels, 5)
    logits[:, 3] = logits[:, 0] + logits[:, 1] + 0.1 * torch.randn(500, dtype=torch.float64) + 9 * (labels == 3)
    return rs.independence_deficit(logits, labels, permutations=5, progress=False)


def _texts(table):
    return [f.text for f in deficit_findings(table)]


def test_a_class_that_noise_replaces_too_contradicts_no_sentence(table):
    """At most five others, accuracy kept, R² within the null: such a class is in the table, and in no sentence."""
    within = tuple(
        replace(r, status=Status.NOT_BEYOND_NULL) if r.status is Status.DEPENDENT and r.index != 0 else r
        for r in table.rows
    )
    rows = (replace(within[0], status=Status.DEPENDENT, positive_accuracy_replaced=0.0, tried=()), *within[1:])
    few = [r for r in rows if r.status is Status.NOT_BEYOND_NULL and r.fewest(0.9) is not None]
    assert few  # replaced by no more than four others
    texts = _texts(replace(table, rows=rows))
    assert "None of the classes that depend on others can be replaced by five or fewer others" in texts[1]
    assert not any(t.startswith("No class can be replaced") for t in texts)


def test_less_than_half_of_any_class_counts_every_class(table):
    low = tuple(replace(r, r2=min(r.r2, 0.4), status=Status.DEPENDENT) for r in table.rows)
    assert any("less than half" in t for t in _texts(replace(table, rows=low)))
    noise = replace(low[0], r2=0.8, status=Status.NOT_BEYOND_NULL)
    assert not any("less than half" in t for t in _texts(replace(table, rows=(noise, *low[1:]))))


def test_a_table_without_a_null_has_a_page_that_mentions_none(table):
    torch.manual_seed(0)
    labels = torch.arange(200) % 4
    logits = torch.randn(200, 4, dtype=torch.float64) + 6 * torch.nn.functional.one_hot(labels, 4)
    bare = rs.independence_deficit(logits, labels, permutations=0, progress=False)
    texts = _texts(bare)
    assert not any("beyond the permutation null" in t for t in texts)
    assert any("No permutation null was run" in t for t in texts)
    assert "No permutation null was run" in deficit_page(bare).html()
