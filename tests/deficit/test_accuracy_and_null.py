"""Accuracies against a loop that replaces the logit; permutations against their definition."""

from __future__ import annotations

import torch

import rankscope as rs
from rankscope.deficit import moments as moments_module
from rankscope.deficit.accuracy import rivals
from rankscope.deficit.moments import moments, permuted_cross
from rankscope.deficit.null import permutation


def test_replaced_accuracy_is_that_of_argmax(monkeypatch, independent):
    monkeypatch.setattr("rankscope.deficit.accuracy.BLOCK", 7)
    z, y = independent(60, 5, means=1.5)
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(3, 5, generator=g, dtype=torch.float64)
    constant = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    classes = torch.tensor([4, 0, 2])
    known = rivals(z, y)
    found, original = known.replaced(classes, weights, constant), known.original(classes)
    for b, i in enumerate(classes.tolist()):
        changed = z.clone()
        changed[:, i] = z @ weights[b] + constant[b]
        right, plain = changed.argmax(1) == y, z.argmax(1) == y
        assert float(found.all[b]) == float(right.double().mean())
        assert float(found.positive[b]) == float(right[y == i].double().mean())
        assert float(original.all[b]) == float(plain.double().mean())
        assert float(original.positive[b]) == float(plain[y == i].double().mean())


def test_ties_go_to_the_lower_class_as_in_argmax():
    z = torch.tensor([[1.0, 2.0, 2.0], [2.0, 1.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([1, 0])
    known = rivals(z, y)
    same = torch.eye(3, dtype=torch.float64)
    found = known.replaced(torch.arange(3), same, torch.zeros(3, dtype=torch.float64))
    assert found.all.tolist() == [1.0, 1.0, 1.0]
    assert known.index.tolist() == [[1, 2], [0, 2]]


def test_moments_are_those_of_numpy(monkeypatch, independent):
    monkeypatch.setattr(moments_module, "BLOCK", 4)
    z, _ = independent(30, 5)
    z = z + 1e4
    rows = torch.arange(0, 30, 2)
    found = moments(z.float(), rows)
    expected = torch.cov(z.float().double()[rows].T, correction=0)
    torch.testing.assert_close(found.gram, expected)
    assert found.count == 15
    order = permutation(torch.zeros(15), "free", torch.Generator().manual_seed(2))
    cross = permuted_cross(z.float(), rows, order, found.mean, torch.tensor([3, 1]))
    centred = z.float().double()[rows] - found.mean
    torch.testing.assert_close(cross, (centred[order].T @ centred / 15)[[3, 1]])


def test_permutation_within_class_keeps_labels_and_is_uniform():
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(6, 6)
    for _ in range(3000):
        order = permutation(labels, "within_class", g)
        assert order.sort().values.tolist() == list(range(6))
        assert labels[order].equal(labels)
        counts[torch.arange(6), order] += 1
    expected = (labels[:, None] == labels).float()
    expected /= expected.sum(1, keepdim=True)
    assert float((counts / 3000 - expected).abs().max()) < 0.05


def test_free_permutation_ignores_labels():
    labels = torch.arange(50) % 2
    order = permutation(labels, "free", torch.Generator().manual_seed(0))
    assert order.sort().values.tolist() == list(range(50))
    assert not labels[order].equal(labels)


def test_the_text_says_what_the_null_is() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 3, generator=rng), torch.arange(60) % 3
    assert "null 'within_class' with 1 permutation;" in str(rs.independence_deficit(logits, labels, permutations=1))
