"""One rule for labels, whichever measure takes them: what one refuses, all refuse in the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base.labels import class_indices

RNG = np.random.default_rng(0)
Y = RNG.permutation(np.arange(60) % 2)
X = RNG.normal(size=(60, 5)) + 2.0 * Y[:, None]
W = RNG.normal(size=(2, 5))


def collapse(labels: Any) -> list[float]:
    metric = rs.metrics.NeuralCollapse(2, head=torch.from_numpy(W))
    metric.update(torch.from_numpy(X), labels)
    return [float(v) for v in metric.compute().values()]


MEASURES: dict[str, Callable[[Any], Any]] = {
    "classification_dimension": lambda y: rs.classification_dimension(X, y, W, bootstrap=0).curve.tolist(),
    "independence_deficit": lambda y: [vars(row) for row in rs.independence_deficit(X @ W.T, y, permutations=2)],
    "feature_rank": lambda y: vars(rs.feature_rank(X, labels=y, head=W)["features"].by_class),
    "NeuralCollapse": collapse,
}

KINDS: dict[str, Any] = {
    "Boolean tensor": torch.from_numpy(Y == 1),
    "Boolean array": Y == 1,
    "list of Booleans": (Y == 1).tolist(),
    "list of integers": Y.tolist(),
    "unsigned": Y.astype(np.uint64),
    "bytes": Y.astype(np.int8),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "text": (["cat" if y else "dog" for y in Y], r"labels are text \('(cat|dog)'\); give class indices in the order"),
    "array of text": (np.where(Y == 1, "cat", "dog"), r"labels are text \('(cat|dog)'\); give class indices"),
    "objects": (np.where(Y == 1, "cat", "dog").astype(object), r"labels are text \('(cat|dog)'\); give class indices"),
    "whole floats": (Y.astype(float), r"labels are float64 of shape \(60,\).*\(labels\.long\(\) of whole numbers\)"),
    "one-hot": (np.eye(2)[Y], r"labels are float64 of shape \(60, 2\).*\(of one-hot labels labels\.argmax\(1\)\)"),
    "a column": (Y[:, None], r"labels are int64 of shape \(60, 1\).*\(labels\[:, 0\]\)"),
    "complex": (Y + 0j, r"labels are complex128 of shape \(60,\)"),
    "beyond int64": (Y.astype(np.uint64) + np.uint64(2**63), "labels exceed 9223372036854775807"),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", KINDS)
def test_integers_and_booleans_of_every_kind_are_classes(kind: str, measure: str) -> None:
    found, expected = MEASURES[measure](KINDS[kind]), MEASURES[measure](torch.from_numpy(Y))
    assert str(found) == str(expected)  # NaN is equal to itself in print


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_names_no_class_is_refused_by_every_measure_alike(kind: str, measure: str) -> None:
    labels, message = REFUSED[kind]
    with pytest.raises(rs.DataError, match=message):
        MEASURES[measure](labels)


def test_a_collection_refuses_text_and_takes_booleans(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(5, 2)), torch.from_numpy(X).float()
    with pytest.raises(rs.DataError, match=r"labels are text \('(cat|dog)'\); give class indices"):
        rs.collect(net, (x, np.where(Y == 1, "cat", "dog")), out=tmp_path / "text")
    found = rs.collect(net, (x, torch.from_numpy(Y == 1)), out=tmp_path / "kept")
    assert found.labels.tolist() == Y.tolist()


def test_as_many_labels_as_samples() -> None:
    with pytest.raises(rs.DataError, match="2 labels for 3 samples; give one label per sample"):
        class_indices([0, 1], 3)
