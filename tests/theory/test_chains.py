"""Long products against arithmetic of hundreds of digits, and the bounds that hold for numerical rank."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope import DataError, UsageError
from rankscope.spectra import Tolerance
from rankscope.theory import chain_singular_values, composition_bound, stability_radius


def exact(matrices: list[np.ndarray], digits: int) -> np.ndarray:
    with mpmath.workdps(digits):
        product = mpmath.matrix(matrices[0].tolist())
        for m in matrices[1:]:
            product = mpmath.matrix(m.tolist()) * product
        if product.rows < product.cols:
            product = product.T
        sigma = mpmath.svd_r(product, compute_uv=False)
        return np.array([float(mpmath.log(s)) for s in sigma])


@pytest.mark.parametrize(("n", "depth", "digits"), [(6, 90, 300), (8, 60, 300), (3, 200, 500)])
def test_gaussian_chains_far_beyond_float64(n: int, depth: int, digits: int):
    rng = np.random.default_rng(n)
    matrices = [rng.standard_normal((n, n)) for _ in range(depth)]
    found, expected = chain_singular_values(matrices).log_singular_values, exact(matrices, digits)
    assert expected[-1] - expected[0] < math.log(1e-16) * 1.5
    np.testing.assert_allclose(found, expected, atol=1e-11)  # relative error of σ itself


def test_widths_may_change():
    rng = np.random.default_rng(0)
    widths = [5, 7, 4, 9, 4, 6]
    matrices = [rng.standard_normal((b, a)) for a, b in pairwise(widths)]
    for chain in (matrices, [m.T for m in matrices[::-1]]):
        found = chain_singular_values(chain)
        assert found.shape == (chain[-1].shape[0], chain[0].shape[1])
        direct = np.linalg.svd(np.linalg.multi_dot(chain[::-1]), compute_uv=False)
        np.testing.assert_allclose(np.exp(found.log_singular_values[:4]), direct[:4], rtol=1e-11)
        assert np.all(np.isneginf(found.log_singular_values[4:]))
        assert found.rank(0.0) == 4


def test_graded_and_hostile_factors():
    rng = np.random.default_rng(4)
    q = [np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(4)]
    grade = np.diag(10.0 ** -np.arange(0, 10, 2))
    # growth that one factor undoes in the next
    matrices = [q[0] @ grade @ q[1], q[2] @ np.linalg.inv(grade) @ q[3], q[1] @ grade @ q[0]] * 5
    found, expected = chain_singular_values(matrices).log_singular_values, exact(matrices, 400)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # condition 1e8 of single factors
    same = chain_singular_values([q[0]] * 50)
    np.testing.assert_allclose(same.log_singular_values, 0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_scale_neither_over_nor_underflows(scale: float):
    rng = np.random.default_rng(1)
    matrices = [rng.standard_normal((4, 4)) for _ in range(30)]
    plain = chain_singular_values(matrices).log_singular_values
    scaled = chain_singular_values([scale * m for m in matrices]).log_singular_values
    np.testing.assert_allclose(scaled - 30 * math.log(scale), plain, atol=1e-9)


def test_exact_rank_drops_are_named():
    rng = np.random.default_rng(2)
    matrices = [rng.standard_normal((6, 6)) for _ in range(20)]
    matrices[4] = matrices[4] @ np.diag([1.0, 1, 1, 1, 0, 0])
    matrices[9] = np.outer(rng.standard_normal(6), rng.standard_normal(6))
    found = chain_singular_values(matrices)
    assert found.rank_drops == ((5, 4), (10, 1))
    assert np.isfinite(found.log_singular_values).sum() == 1
    direct = np.linalg.svd(np.linalg.multi_dot(matrices[::-1]), compute_uv=False)
    assert math.exp(found.log_singular_values[0]) == pytest.approx(direct[0], rel=1e-11)
    assert "rank 1 to float64 precision" in repr(found)
    zero = chain_singular_values([np.eye(3), np.zeros((3, 3)), np.eye(3)])
    assert zero.rank_drops == ((2, 0),)
    assert zero.rank("paper") == 0
    json.dumps(zero.to_dict(), allow_nan=False)


def test_rank_below_float64s_reach():
    found = chain_singular_values([np.diag([1.0, 1e-100, 1e-200])] * 3)
    assert found.rank(1e-301) == 2
    assert found.rank(1e-299) == 1
    assert found.rank(0.0) == 3
    assert found.rank(Tolerance(atol=1e-301)) == 2
    assert found.rank("reference") == 1
    assert found.exponents.tolist() == pytest.approx((np.log(10) * np.array([0, -100, -200])).tolist(), rel=1e-12)


def test_tensors_and_lists():
    m = [[1.0, 2.0], [0.0, 3.0]]
    first = chain_singular_values([m, m]).log_singular_values
    second = chain_singular_values([torch.tensor(m), torch.tensor(m)]).log_singular_values
    assert first.tolist() == second.tolist()
    np.testing.assert_allclose(np.exp(first), np.linalg.svd(np.array(m) @ m, compute_uv=False), rtol=1e-13)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_any_small_chain_matches_the_product(seed: int, first: int, width: int, depth: int):
    rng = np.random.default_rng(seed)
    sides = [first, *rng.integers(1, width + 1, depth).tolist()]
    matrices = [rng.standard_normal((b, a)) for a, b in pairwise(sides)]
    found = chain_singular_values(matrices)
    product = matrices[0]
    for m in matrices[1:]:
        product = m @ product
    direct = np.linalg.svd(product, compute_uv=False)
    np.testing.assert_allclose(np.exp(found.log_singular_values), direct, rtol=1e-9, atol=1e-12 * direct[0])
    assert np.isfinite(found.log_singular_values).sum() == min(sides)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: chain_singular_values([]), UsageError, "matrices is empty"),
        (lambda: chain_singular_values("ab"), UsageError, "matrices is a str"),
        (lambda: chain_singular_values(np.eye(2)), UsageError, "matrices is a ndarray"),
        (lambda: chain_singular_values([np.ones((2, 3))] * 2), DataError, "takes 3 values, but layer 1 gives 2"),
        (lambda: chain_singular_values([np.eye(2), np.full((2, 2), np.inf)]), DataError, "layer 2 .*4 NaN or infinite"),
        (lambda: chain_singular_values([np.ones((0, 2))]), DataError, "at least one row and column"),
        (lambda: composition_bound(np.eye(2), np.eye(3)), DataError, "b has 3 columns but a has 2 rows"),
        (lambda: composition_bound([[np.nan]], [[1.0]]), DataError, "a has 1 NaN"),
        (lambda: composition_bound(np.eye(2), np.eye(2), Tolerance(atol=1.0)), UsageError, "absolute part"),
        (lambda: stability_radius(np.eye(3), 0.5, direction=-2.0), UsageError, "direction is -2.0"),
        (lambda: stability_radius(np.eye(3), 0.5, direction=math.nan), UsageError, "direction is nan"),
        (lambda: stability_radius(np.eye(3), 0.5, direction=np.float32(-1)), UsageError, "finite number of at least 0"),
        (lambda: stability_radius(np.eye(3), 0.5, direction=np.eye(2)), DataError, r"shape \(2, 2\), but .* \(3, 3\)"),
        (lambda: stability_radius(np.eye(3), 0.5, direction=np.full((3, 3), np.nan)), DataError, "9 NaN"),
    ],
)  # fmt: skip
def test_bad_input(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


def graded(rng: np.random.Generator, rows: int, columns: int, decades: float) -> np.ndarray:
    u, _, v = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    return (u * 10.0 ** -(decades * rng.random(min(rows, columns)))) @ v


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 10**9),
    st.tuples(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10)),
    st.floats(0, 6),
    st.floats(1e-6, 0.9),
)
def test_composition_bound_is_never_violated(seed: int, sides: tuple[int, int, int], decades: float, rtol: float):
    rng = np.random.default_rng(seed)
    a, b = graded(rng, sides[1], sides[0], decades), graded(rng, sides[2], sides[1], decades)
    found = composition_bound(a, b, rtol)
    assert found.holds
    assert found.kappa >= 1 - 1e-12
    assert found.bounded <= found.after


def test_numerical_rank_may_rise_and_is_flagged():
    rng = np.random.default_rng(0)
    found = [composition_bound(graded(rng, 8, 8, 3), graded(rng, 8, 8, 3), 0.05) for _ in range(1500)]
    assert all(f.holds for f in found)
    share = np.mean([f.rose for f in found])
    assert 0.005 < share < 0.2
    risen = next(f for f in found if f.rose)
    assert "rise at equal rtol" in str(risen)
    assert json.loads(json.dumps(risen.to_dict()))["rose"]


def test_composition_with_a_product_of_zero():
    found = composition_bound(np.diag([1.0, 0.0]), np.diag([0.0, 1.0]), 0.1)
    assert found.bounded == found.after == 0
    assert math.isinf(found.kappa)
    assert found.to_dict()["kappa"] is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-5, 1e200, 1e300])
def test_the_bound_knows_no_scale(scale: float):
    """1e-200·A and 1e-200·B underflowed into "BA = 0, κ = inf", 1e200·A and 1e200·B into ten NaN."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 5)), rng.standard_normal((2, 6))
    plain, scaled = composition_bound(a, b, 0.1), composition_bound(scale * a, scale * b, 0.1)
    assert (scaled.before, scaled.after, scaled.bounded) == (plain.before, plain.after, plain.bounded)
    assert scaled.kappa == pytest.approx(plain.kappa, rel=1e-12)
    assert composition_bound(scale * a, b / scale, 0.1).kappa == pytest.approx(plain.kappa, rel=1e-12)


def test_a_product_that_underflows_is_no_zero():
    a, b = np.diag([1.0, 0.0, 1e-200]), np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1e-200]])
    with pytest.raises(DataError, match="underflows float64 although neither is zero"):
        composition_bound(a, b, 0.1)
    assert composition_bound([[1.0], [1.0]], [[1.0, -1.0]], 0.1).after == 0  # cancelled, not underflowed


def test_a_direction_of_zero_never_changes_the_rank():
    assert math.isinf(stability_radius(np.eye(3), 0.5, direction=0.0))
    assert stability_radius(np.eye(3), 0.5, direction=2) == pytest.approx(0.5 / 1.5 / 2)
    assert stability_radius(np.eye(3), 0.5, direction=2 * np.eye(3)) == pytest.approx(0.5 / 1.5 / 2)
