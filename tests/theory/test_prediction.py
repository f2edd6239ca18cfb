"""Predicted ranks against the numbers of record, direct simulation, and each law's own limits."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope import Tolerance, UsageError
from rankscope.theory import depth_to_rank, marchenko_pastur_rank, predicted_rank

# n = 1000: depth → (paper, reference); the first computed from the law's own formula, to within one
FUSS_CATALAN = {1: (1000, 986), 10: (748, 450), 20: (506, 262), 50: (248, 116)}
LYAPUNOV = {1: (1000, 1000), 10: (836, 595), 20: (595, 364), 50: (303, 166)}
CONVENTIONS = ("paper", "reference")


@pytest.mark.parametrize("depth", FUSS_CATALAN)
@pytest.mark.parametrize("which", [0, 1])
def test_fuss_catalan_table(depth: int, which: int):
    found = predicted_rank(1000, depth, CONVENTIONS[which], law="fuss-catalan")
    assert abs(found.value - FUSS_CATALAN[depth][which]) <= 1
    assert found.tolerance == CONVENTIONS[which]


@pytest.mark.parametrize("depth", LYAPUNOV)
@pytest.mark.parametrize("which", [0, 1])
def test_theorem_5_table(depth: int, which: int):
    assert predicted_rank(1000, depth, CONVENTIONS[which], law="lyapunov").rank == LYAPUNOV[depth][which]


def product_spectrum(n: int, depth: int, rng: np.random.Generator) -> np.ndarray:
    product = np.eye(n)
    for _ in range(depth):
        product = rng.standard_normal((n, n)) @ product / np.sqrt(n)
    return np.linalg.svd(product, compute_uv=False)


def test_simulation_at_finite_depth():
    n, depth, rtol = 120, 4, 1e-2
    rng = np.random.default_rng(0)
    ranks = [int((s >= rtol * s[0]).sum()) for s in (product_spectrum(n, depth, rng) for _ in range(20))]
    error = np.std(ranks) / np.sqrt(len(ranks))
    # the law is that of n → ∞; its edge is one part in n off at this size
    assert abs(predicted_rank(n, depth, rtol, law="fuss-catalan").value - np.mean(ranks)) <= 3 * error + 1.5


def test_simulation_of_one_matrix():
    rng = np.random.default_rng(1)
    rows, columns, rtol = 90, 60, 0.3
    ranks = []
    for _ in range(40):
        s = np.linalg.svd(rng.standard_normal((rows, columns)), compute_uv=False)
        ranks.append(int((s >= rtol * s[0]).sum()))
    error = np.std(ranks) / np.sqrt(len(ranks))
    assert abs(marchenko_pastur_rank(rows, columns, rtol) - np.mean(ranks)) <= 3 * error + 1.0


def test_auto_takes_a_law_within_its_range():
    for depth in (1, 10, 100, 100_000):
        found = predicted_rank(50, depth, 1e-3)
        assert found.in_range
    assert predicted_rank(50, 2, 1e-3).law == "fuss-catalan"
    assert predicted_rank(50, 100_000, 1e-3).law == "lyapunov"
    assert predicted_rank(50, 100_000, 1e-3).rank == 1
    assert "OUTSIDE" in str(predicted_rank(50, 1, 1e-3, law="lyapunov"))


@pytest.mark.parametrize("law", ["fuss-catalan", "lyapunov", "auto"])
@pytest.mark.parametrize("rank", [1, 5, 20])
def test_depth_to_rank_is_the_first_depth(law: str, rank: int):
    depth = depth_to_rank(30, rank, 1e-2, law=law)
    assert predicted_rank(30, depth, 1e-2, law=law).rank <= rank
    if depth > 1:
        assert predicted_rank(30, depth - 1, 1e-2, law=law).rank > rank


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predicted_rank(0, 3), "0"),
        (lambda: predicted_rank(10, 0), "0"),
        (lambda: predicted_rank(10, 3, law="fuss"), "did you mean 'fuss-catalan'"),
        (lambda: predicted_rank(10, 3, Tolerance(atol=1.0)), "absolute|rtol"),
    ],
)
def test_refusals(call, message: str):
    with pytest.raises(UsageError, match=message):
        call()
