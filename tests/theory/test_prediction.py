"""Predicted ranks against the numbers of record, direct simulation, and each law's own limits."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope import Tolerance, UsageError
from rankscope.spectra import as_tolerance
from rankscope.theory import (
    chain_singular_values,
    deep_chain,
    depth_to_rank,
    marchenko_pastur_rank,
    predicted_rank,
    rectangular_chain_rank,
    residual_chain_rank,
    residual_exponents,
)

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
    assert predicted_rank(1000, depth, CONVENTIONS[which], law="lyapunov").value == LYAPUNOV[depth][which]
    # the expectation runs smoothly between the steps of the whole number
    assert abs(predicted_rank(1000, depth, CONVENTIONS[which], law="lyapunov-mean").value - LYAPUNOV[depth][which]) <= 1


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
    assert abs(predicted_rank(n, depth, rtol).value - np.mean(ranks)) <= 3 * error + 0.5
    # the law of n → ∞: its edge lies above the mean of σ_1 at this size
    assert abs(predicted_rank(n, depth, rtol, law="fuss-catalan").value - np.mean(ranks)) <= 3 * error + 1.5


def test_simulation_of_one_matrix():
    rng = np.random.default_rng(1)
    rows, columns, rtol = 90, 60, 0.3
    ranks = []
    for _ in range(40):
        s = np.linalg.svd(rng.standard_normal((rows, columns)), compute_uv=False)
        ranks.append(int((s >= rtol * s[0]).sum()))
    error = np.std(ranks) / np.sqrt(len(ranks))
    assert abs(marchenko_pastur_rank(rows, columns, rtol) - np.mean(ranks)) <= 3 * error + 0.5


# mean rank over simulated chains (150 for n = 10, 30 for n = 30), by chain_singular_values; standard errors below 0.25
SIMULATED = {
    (10, 20): {1e-2: 3.16, 1e-5: 6.17, 1e-12: 8.95},
    (10, 40): {1e-2: 1.97, 1e-5: 4.07, 1e-12: 7.08},
    (10, 80): {1e-2: 1.35, 1e-5: 2.52, 1e-12: 4.82},
    (10, 160): {1e-2: 1.09, 1e-5: 1.70, 1e-12: 2.99},
    (30, 120): {1e-2: 2.43, 1e-5: 5.13, 1e-12: 10.77},
    (30, 240): {1e-2: 1.37, 1e-5: 2.77, 1e-12: 6.13},
}


@pytest.mark.parametrize(("n", "depth"), SIMULATED)
def test_between_the_laws(n: int, depth: int):
    for rtol, mean in SIMULATED[n, depth].items():
        found = predicted_rank(n, depth, rtol)
        # stated: 0.5; Fuss–Catalan is off by up to 0.9 here, Theorem 5's whole count by 1.0
        assert found.value == pytest.approx(mean, abs=0.4)
        assert found.laws["fuss-catalan"] - 0.4 < mean < found.laws["lyapunov-mean"] + 0.4


def test_the_simulated_table_itself():
    rng = np.random.default_rng(8)
    chains = [chain_singular_values(list(rng.standard_normal((40, 10, 10)))).log_singular_values for _ in range(60)]
    ranks = np.array([(logs - logs[0] >= np.log(1e-5)).sum() for logs in chains])
    assert abs(ranks.mean() - SIMULATED[10, 40][1e-5]) < 4 * ranks.std() / np.sqrt(60) + 0.1


@pytest.mark.parametrize("law", ["auto", "fuss-catalan", "tracy-widom", "lyapunov-mean"])
@pytest.mark.parametrize("n", [1, 2, 7, 10, 60])
@pytest.mark.parametrize("rtol", [0.9, 0.3, 1e-2, 1e-5, 1e-20, 1e-100, 1e-300])
def test_never_rises_with_depth_nor_jumps(law: str, n: int, rtol: float):
    depths = sorted({*np.geomspace(1, 40 * n, 60).astype(int), n + 1, 4 * n + 1, 16 * n - 1, 16 * n, 16 * n + 1})
    values = [predicted_rank(n, int(depth), rtol, law=law).value for depth in depths]
    assert max(np.diff(values)) <= 1e-9
    for edge in (n, 4 * n, 16 * n):
        # one layer more at depth L takes about a share 1/L; Fuss–Catalan to Theorem 5 at 4n + 1 was a jump upwards
        before, after = (predicted_rank(n, depth, rtol, law=law).value for depth in (edge, edge + 1))
        assert before - after <= 2 * before / edge + 1e-9


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10, 1000])
@pytest.mark.parametrize("rtol", [1e-15, 1e-17, 1e-25, 1e-50, 1e-100, 1e-308, 5e-324, 1 - 1e-15])
def test_every_threshold_has_an_answer(depth: int, rtol: float):
    found = predicted_rank(1000, depth, rtol, law="tracy-widom").value
    assert found == pytest.approx(rectangular_chain_rank(1000, [1000] * depth, rtol), abs=1e-6)
    assert 1 <= found <= 1000


def test_a_small_threshold_has_a_depth():
    depth = depth_to_rank(100, 50, 1e-17)
    assert predicted_rank(100, depth, 1e-17).rank <= 50 < predicted_rank(100, depth - 1, 1e-17).rank


def test_above_one_nothing_counts():
    """As in a measurement: no singular value is twice the largest."""
    assert deep_chain(width=8, depth=2, samples=20, tolerance=2.0).jacobian_ranks.tolist() == [[0, 0]]
    for law in ("auto", "fuss-catalan", "lyapunov"):
        assert predicted_rank(8, 2, 2.0, law=law).value == 0
        assert predicted_rank(8, 2, 1.0, law=law).value == 1
    assert rectangular_chain_rank(8, [8, 8], 2.0) == marchenko_pastur_rank(8, 8, 2.0) == 0
    assert residual_chain_rank(8, 1.0, 2, 2.0) == residual_exponents(8, 1.0).rank(2, 2.0) == 0
    assert chain_singular_values([np.eye(3)]).rank(2.0) == 0
    assert depth_to_rank(8, 3, 2.0) == 1


def test_at_a_threshold_of_one_the_comparison_decides():
    """√(eps32·n) and eps32·n are 1 at n = 2²³: the one leaves σ_1 out (σ > τ), the other counts it (σ ≥ τ)."""
    n = 2**23
    for name, expected in (("reference", 0), ("paper", 1)):
        tolerance = as_tolerance(name)
        assert tolerance.relative((n, n)) == 1
        assert tolerance.strict == (expected == 0)
        assert predicted_rank(n, 3, name).value == residual_chain_rank(n, 1.0, 3, name) == expected


@pytest.mark.parametrize(
    ("law", "first", "last"),
    [("fuss-catalan", 1, 200), ("tracy-widom", 1, 200), ("lyapunov", 200, None), ("lyapunov-mean", 200, None)],
)
def test_a_range_holds_both_its_ends(law: str, first: int, last: int | None):
    found = predicted_rank(50, first, 1e-3, law=law)
    assert found.depth_range == (first, last)
    for depth in (1, 199, 200, 201, 10**6):
        inside = first <= depth and (last is None or depth <= last)
        assert predicted_rank(50, depth, 1e-3, law=law).in_range == inside


def test_auto_names_the_law_that_it_takes():
    laws = {1: "tracy-widom", 50: "tracy-widom", 51: "between", 799: "between", 800: "lyapunov-mean"}
    for depth, law in laws.items():
        found = predicted_rank(50, depth, 1e-3)
        assert found.law == law
        if law != "between":
            assert found.value == found.laws[law]


def test_rank_is_the_nearest_whole_number():
    found = [predicted_rank(200, depth, 1e-3) for depth in range(1, 40)]
    assert {round(one.value % 1) for one in found} == {0, 1}  # of both kinds
    for one in found:
        assert abs(one.rank - one.value) <= 0.5
        assert int(one) == one.rank == one.to_dict()["rank"]


def test_auto_takes_a_law_within_its_range():
    for depth in (1, 10, 100, 100_000):
        found = predicted_rank(50, depth, 1e-3)
        assert found.in_range
    assert predicted_rank(50, 2, 1e-3).law == "tracy-widom"
    assert predicted_rank(50, 100_000, 1e-3).law == "lyapunov-mean"
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


def test_never_above_the_width():
    for n in (1, 2, 3, 7):
        for depth in (1, 2, 4, 9, 40, 200):
            for rtol in (0.5, 1e-3, 1e-100, 1e-300):
                assert predicted_rank(n, depth, rtol).value <= n
