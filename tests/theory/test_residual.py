"""Residual chains I + t·G/√n and the ReLU width rule, against sampled layers and chains that are run."""

from __future__ import annotations

import json
import math

import mpmath
import numpy as np
import pytest
from scipy.integrate import trapezoid

from rankscope import UsageError
from rankscope.theory import (
    chain_singular_values,
    gaussian_exponents,
    lyapunov_exponents,
    predicted_rank,
    relu_width,
    residual_chain_rank,
    residual_exponents,
)


def ranks(n: int, t: float, depth: int, seed: int) -> int:
    """Paper rank of a chain multiplied out in float64, which resolves 1e-5 easily."""
    rng = np.random.default_rng(seed)
    product = np.eye(n)
    for _ in range(depth):
        product = product + t / math.sqrt(n) * (rng.standard_normal((n, n)) @ product)
        product /= np.linalg.norm(product)
    sigma = np.linalg.svd(product, compute_uv=False)
    return int((sigma >= 2.0**-23 * n * sigma[0]).sum())


def test_a_branch_of_one_over_root_depth_loses_nothing():
    n, depth = 200, 400
    t = 1 / math.sqrt(depth)
    assert residual_exponents(n, t).rank(depth) == n
    assert ranks(n, t, depth, seed=0) == n


def test_a_branch_of_one_over_root_depth_loses_nothing_below_a_threshold_alone():
    """σ_n/σ_1 tends to e^(−√3)/(2 + √3) = 0.0474; one chain of 200 and 400 layers is run beside the law."""
    edge = math.exp(-math.sqrt(3)) / (2 + math.sqrt(3))
    n, depth = 10**7, 10**6  # so wide and deep that both limits are reached
    assert residual_chain_rank(n, depth**-0.5, depth, 0.995 * edge) == n
    assert residual_chain_rank(n, depth**-0.5, depth, 1.005 * edge) < n
    n, depth = 200, 400
    rng = np.random.default_rng(0)
    product = np.eye(n)
    for _ in range(depth):
        product = product + depth**-0.5 / math.sqrt(n) * (rng.standard_normal((n, n)) @ product)
    sigma = np.linalg.svd(product, compute_uv=False)
    counts = [int((sigma >= rtol * sigma[0]).sum()) for rtol in (0.1, 0.5)]
    # one chain: σ_1 scatters by 0.4·(L/n)·t²·n^(1/3) of itself, measured 3 and 2.5 counts; four of them
    assert counts == pytest.approx([residual_chain_rank(n, depth**-0.5, depth, rtol) for rtol in (0.1, 0.5)], abs=12)
    assert counts[0] < 180
    assert counts[1] < 50


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("t", [0.8, 1.0, 1.1, 2.0])
def test_the_hard_edge_is_as_far_off_as_stated(n: int, t: float):
    """At t = 1 the last exponent is some 0.2 too high whatever the width; elsewhere nothing is left of that."""
    closed, sampled = residual_exponents(n, t), residual_exponents(n, t, samples=800 if n == 30 else 150, seed=4)
    high, error = closed.exponents - sampled.exponents, sampled.standard_errors
    place = np.arange(n, 0, -1)  # 1 for the last
    assert np.all(high < 0.25 / place + 1.5 / n + 4.5 * error)
    assert np.all(high > -1.5 / n - 4.5 * error)
    if t == 1.0 and n == 30:
        assert high[-1] > 0.1


def test_a_branch_of_one_keeps_43_of_200_after_100_layers():
    n, depth = 200, 100
    assert abs(np.mean([ranks(n, 1.0, depth, seed) for seed in range(3)]) - 43) <= 3
    # the exponents are the law of great depth: at half the width's depth they count too many, as Theorem 5 does
    assert residual_exponents(n, 1.0).rank(depth) == 50


@pytest.mark.parametrize(
    ("n", "t", "depth"), [(60, 2.0, 5), (60, 0.7, 20), (100, 0.3, 60), (40, 1.0, 40), (80, 0.1, 300)]
)
def test_law_of_finite_depth_matches_simulated_chains(n: int, t: float, depth: int):
    rng, counts, tolerances = np.random.default_rng(2), [], (1e-4, 1e-2, 0.1)
    for _ in range(8):
        product = np.eye(n)
        for _ in range(depth):
            product = product + t / math.sqrt(n) * (rng.standard_normal((n, n)) @ product)
            product /= np.linalg.norm(product)
        sigma = np.linalg.svd(product, compute_uv=False)
        counts.append([int((sigma >= rtol * sigma[0]).sum()) for rtol in tolerances])
    expected = [residual_chain_rank(n, t, depth, rtol) for rtol in tolerances]
    # stated: within one; three errors of the mean of eight chains on top
    error = np.std(counts, axis=0, ddof=1) / math.sqrt(len(counts))
    assert np.all(np.abs(np.mean(counts, axis=0) - expected) <= 1 + 3 * error)


@pytest.mark.parametrize("depth", [1, 10, 50])
@pytest.mark.parametrize("rtol", [1e-8, 1e-4, 1e-2, 0.5])
def test_without_the_identity_it_is_the_chain_of_square_layers(depth: int, rtol: float):
    expected = predicted_rank(1000, depth, rtol, law="tracy-widom").value
    assert residual_chain_rank(1000, 1e5, depth, rtol) == pytest.approx(expected, abs=1e-4)  # of order n/t²


def test_one_residual_layer_by_its_stieltjes_transform():
    """P(x ≥ a) by quadrature of the density that the signal-plus-noise equation gives, root by root."""
    t = 0.8
    grid = np.linspace(0, 6, 20_001)[1:]
    # (s − 1)(1 − s²x) = t²s as a cubic in s = 1 + t²m
    density = np.array([np.roots([-x, x, 1 - t**2, -1]).imag.max() for x in grid]) / (math.pi * t**2)
    edge = grid[density > 1e-6][-1]
    assert trapezoid(density, grid) == pytest.approx(1, abs=2e-3)
    for rtol in (0.05, 0.2, 0.6):
        share = trapezoid(density * (grid >= rtol**2 * edge), grid)
        # so wide that σ_1 is at its limit: 1.2·n^(−2/3) of x_max is 3e-5
        assert residual_chain_rank(10**7, t, 1, rtol) / 10**7 == pytest.approx(share, abs=2e-3)


@pytest.mark.parametrize("t", [1e-3, 0.3, 1 - 1e-9, 1.0, 1 + 1e-9, 3.0, 1e6])
def test_falls_with_depth_and_reaches_both_ends(t: float):
    for rtol in (1e-300, 1e-17, 1e-2, 0.5, 1 - 1e-12):
        ranks = [residual_chain_rank(200, t, depth, rtol) for depth in (1, 2, 3, 5, 10, 30, 100, 1000, 10**5, 10**12)]
        assert max(np.diff(ranks)) <= 1e-6
        assert all(1 <= rank <= 200 for rank in ranks)
        assert ranks[-1] == pytest.approx(1, abs=0.2)
    assert residual_chain_rank(200, t, 5, 0.0) == 200
    assert residual_chain_rank(1, t, 5) == 1


def test_the_smallest_and_the_greatest_branches():
    for t in (5e-324, 1e-200, 1e-30):
        assert residual_chain_rank(50, t, 100, 0.99) == 50
    for t in (1e8, 1e154, 1e300):
        assert residual_chain_rank(50, t, 10, 1e-2) == predicted_rank(50, 10, 1e-2, law="tracy-widom").value
    # on both sides of each change of formula
    assert residual_chain_rank(50, 1.01e7, 10, 1e-2) == pytest.approx(residual_chain_rank(50, 0.99e7, 10, 1e-2))
    below, above = (residual_chain_rank(50, t, 10**11, 1e-2) for t in (0.9999e-5, 1.0001e-5))
    assert 10 < above < below < above * 1.001
    assert residual_chain_rank(50, 1e-7, 10**15, 1e-2) == pytest.approx(residual_chain_rank(50, 1e-5, 10**11, 1e-2))


@pytest.mark.parametrize(("t", "depth"), [(1e-6, 10), (1e-4, 7), (1e-9, 10**7), (1e-9, 2), (3e-9, 1)])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7])
def test_tiny_branches_have_a_semicircle_of_singular_values(t: float, depth: int, ratio: float):
    """I + t·ΣG/√n to first order: log σ are the eigenvalues of the symmetric part, a semicircle of radius t·√(2L).

    The largest of n such eigenvalues has the mean 1 − 1.20653·n^(−2/3)/2 radii (Tracy and Widom 1996).
    """
    radius = t * math.sqrt(2 * depth)
    at = 1 - 1.2065336 / 2 * 1000 ** (-2 / 3) - ratio  # the threshold, in radii
    share = (math.acos(at) - at * math.sqrt(1 - at**2)) / math.pi
    # what the first order leaves out is a share t·√L of the radius
    expected = pytest.approx(1000 * share, abs=0.1 + 1000 * radius)
    assert residual_chain_rank(1000, t, depth, math.exp(-ratio * radius)) == expected


def test_exponents_give_the_rank_at_great_depth():
    n, depth, rtol = 6, 600, 1e-30
    rng = np.random.default_rng(1)
    chain = [np.eye(n) + rng.standard_normal((n, n)) / math.sqrt(n) for _ in range(depth)]
    assert (
        abs(chain_singular_values(chain).rank(rtol) - residual_exponents(n, 1.0, samples=2000).rank(depth, rtol)) <= 1
    )


@pytest.mark.parametrize("t", [0.05, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("n", [30, 150])
def test_closed_form_matches_sampled_layers(n: int, t: float):
    closed, sampled = residual_exponents(n, t), residual_exponents(n, t, samples=400, seed=1)
    error = np.abs(closed.exponents - sampled.exponents)
    # of order 1/n in all but the last few exponents, which fluctuate most
    inner = slice(0, int(0.9 * n))
    assert np.all(error[inner] < 4.5 * sampled.standard_errors[inner] + 1.5 * min(t, 1) ** 2 / n)
    assert abs(closed.exponents.mean() - sampled.exponents.mean()) < 4.5 * sampled.standard_errors.mean() + 1 / n
    assert np.all(np.diff(closed.exponents) <= 1e-12)


def test_sampled_layers_match_a_chain():
    n, t = 5, 0.7
    chain = lyapunov_exponents(
        lambda rng: np.eye(n) + t / math.sqrt(n) * rng.standard_normal((n, n)), depth=5000, burn_in=200
    )
    sampled = residual_exponents(n, t, samples=5000)
    error = np.hypot(chain.standard_errors, sampled.standard_errors)
    assert np.all(np.abs(chain.exponents - sampled.exponents) < 4.5 * error)


def test_small_branches_space_exponents_by_t_squared_over_n():
    n, t = 100, 0.05
    gaps = -np.diff(residual_exponents(n, t).exponents)
    np.testing.assert_allclose(gaps[:90], t**2 / n, rtol=0.02)


def test_great_branches_are_gaussian_chains():
    n, t = 40, 1e6
    expected = gaussian_exponents(n, std=t / math.sqrt(n)).exponents
    np.testing.assert_allclose(residual_exponents(n, t).exponents, expected, atol=1e-2)


@pytest.mark.parametrize("t", [0.001, 0.03, 0.3, 1.0, 20.0])
def test_width_one_is_exact(t: float):
    # E log|1 + t·g|, by mpmath's quadrature on either side of the logarithm's pole
    with mpmath.workdps(20):

        def integrand(g: mpmath.mpf) -> mpmath.mpf:
            return mpmath.log(abs(1 + t * g)) * mpmath.npdf(g)

        pole = -1 / mpmath.mpf(t)
        edges = [-12, pole, 0, 12] if pole > -12 else [-12, 0, 12]
        expected = float(mpmath.quad(integrand, edges))
    assert residual_exponents(1, t).exponents[0] == pytest.approx(expected, abs=1e-9)


def test_relu_width_rule_matches_masked_chains():
    n, depth, rtol = 120, 12, 1e-4
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(4):
        product = np.eye(n)
        for _ in range(depth):
            product = (rng.random(n) < 0.5)[:, None] * (rng.standard_normal((n, n)) @ product)
            product /= np.linalg.norm(product)
        sigma = np.linalg.svd(product, compute_uv=False)
        counts.append(int((sigma >= rtol * sigma[0]).sum()))
    expected = predicted_rank(relu_width(n), depth, rtol).value
    assert abs(np.mean(counts) - expected) < 3
    assert abs(predicted_rank(n, depth, rtol).value - expected) > 10
    assert [relu_width(n) for n in (1, 2, 3, 1000)] == [1, 1, 1, 500]


def test_record():
    found = residual_exponents(4, 0.5, samples=100)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["method"] == "sampled (100 layers)"
    assert "n=4, t=0.5" in repr(found)
    assert found.rank(10, 0.0) == 4
    assert found.rank(10**9, 0.5) == 1
    assert chain_singular_values([np.eye(2)]).rank() == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: residual_exponents(0, 1.0), "n is 0"),
        (lambda: residual_exponents(3, 0.0), "t is 0.0; it must be a finite number above 0"),
        (lambda: residual_exponents(3, math.inf), "t is inf"),
        (lambda: residual_exponents(3, 1.0, samples=1), "samples is 1; a standard error needs at least 2"),
        (lambda: residual_exponents(3, 1.0, samples=0), "samples is 0"),
        (lambda: residual_chain_rank(0, 1.0, 3), "n is 0"),
        (lambda: residual_chain_rank(3, 0.0, 3), "t is 0.0"),
        (lambda: residual_chain_rank(3, 1.0, 0), "depth is 0"),
        (lambda: residual_exponents(3, 1.0).rank(0), "depth is 0"),
        (lambda: relu_width(0), "n is 0"),
    ],
)
def test_bad_input(call, message: str):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("t", [1e29, 1e31, 1e80, 1e300])
def test_a_step_of_any_size(t: float) -> None:
    """Where the identity is lost, the layers are t·G/√n: log t + ½(ψ((n − k + 1)/2) + log(2/n)), here by mpmath."""
    n = 6
    exact = [
        float(mpmath.log(t) + (mpmath.digamma(mpmath.mpf(n - k) / 2) + mpmath.log(2 / mpmath.mpf(n))) / 2)
        for k in range(n)
    ]
    np.testing.assert_allclose(
        residual_exponents(n, t).exponents, exact, rtol=1e-14
    )  # a few roundings of a sum near 690
