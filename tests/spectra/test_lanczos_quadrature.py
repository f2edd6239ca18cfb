"""Bounds of the prescribed-node rule against measures whose weights are known, and the laws they have to follow."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from rankscope.spectra.quadrature import gauss_rule, interpolated_share, share_above
from rankscope.spectra.sampling import count_interval, relative_standard_error
from rankscope.spectra.topvalue import largest_eigenvalue_bound, relative_gap

Vector = NDArray[np.float64]


def jacobi(nodes: Vector, weights: Vector, steps: int, digits: int = 60) -> tuple[Vector, Vector]:
    """α and β of a discrete measure by the Stieltjes process in mpmath: no Lanczos code of ours."""
    with mpmath.workdps(digits):
        x = [mpmath.mpf(float(v)) for v in nodes]
        w = [mpmath.mpf(float(v)) for v in weights]
        total = mpmath.fsum(w)
        q = [mpmath.sqrt(v / total) for v in w]
        before = [mpmath.mpf(0)] * len(q)
        alpha, beta, last = [], [], mpmath.mpf(0)
        for _ in range(steps):
            a = mpmath.fsum(xi * qi * qi for xi, qi in zip(x, q, strict=True))
            r = [(xi - a) * qi - last * bi for xi, qi, bi in zip(x, q, before, strict=True)]
            last = mpmath.sqrt(mpmath.fsum(v * v for v in r))
            alpha.append(float(a))
            beta.append(float(last))
            before, q = q, [v / last for v in r]
    return np.array(alpha), np.array(beta)


def measure(seed: int, count: int = 40) -> tuple[Vector, Vector]:
    generator = np.random.default_rng(seed)
    nodes = np.sort(generator.uniform(0, 1, count) ** 2)
    if seed % 2:  # half of them in a cluster
        nodes[: count // 2] = 0.25 * (1 + 1e-6 * generator.uniform(0, 1, count // 2))
    weights = generator.chisquare(1, count)
    return nodes, weights / weights.sum()


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_the_measure(seed: int) -> None:
    nodes, weights = measure(seed)
    for steps in (1, 2, 5, 12):
        alpha, beta = jacobi(nodes, weights, steps)
        for x in [*np.linspace(-0.1, 1.1, 25), *gauss_rule(alpha, beta[:-1])[0]]:
            low, high = share_above(alpha, beta, float(x))
            assert low <= weights[nodes > x].sum() + 1e-12
            assert high >= weights[nodes >= x].sum() - 1e-12
            assert low <= interpolated_share(alpha, beta, float(x)) <= high


@pytest.mark.parametrize("seed", range(4))
def test_at_an_eigenvalue(seed: int) -> None:
    """A node of the measure at x itself belongs to the upper bound and not to the lower one."""
    nodes, weights = measure(seed)
    alpha, beta = jacobi(nodes, weights, 10)
    for k in range(0, len(nodes), 7):
        low, high = share_above(alpha, beta, float(nodes[k]))
        assert low <= weights[nodes > nodes[k]].sum() + 1e-12
        assert high >= weights[nodes >= nodes[k]].sum() - 1e-12


def test_monotone_in_the_threshold_and_narrower_with_steps() -> None:
    nodes, weights = measure(0)
    alpha, beta = jacobi(nodes, weights, 16)
    at = np.linspace(0.01, 0.99, 60)
    widths = []
    for steps in (2, 4, 8, 16):
        bounds = np.array([share_above(alpha[:steps], beta[:steps], float(x)) for x in at])
        assert (np.diff(bounds, axis=0) <= 1e-8).all()  # 1e-10 of outward rounding, and a step less at a Ritz value
        widths.append(bounds[:, 1] - bounds[:, 0])
    assert all((later <= earlier + 1e-8).all() for earlier, later in itertools.pairwise(widths))


def test_the_bound_is_attained() -> None:
    """The bounds are the best from these moments: the rule itself is a measure with the same moments."""
    alpha, beta = np.array([0.5, 0.4]), np.array([0.2, 0.1])
    low, high = share_above(alpha, beta, 0.45)
    # T̃ by hand: d = β₂²·[(T − x)⁻¹]₂₂
    t = np.array([[0.5, 0.2], [0.2, 0.4]])
    last = 0.45 + 0.01 * np.linalg.inv(t - 0.45 * np.eye(2))[1, 1]
    values, vectors = np.linalg.eigh(np.array([[0.5, 0.2, 0], [0.2, 0.4, 0.1], [0, 0.1, last]]))
    here = int(np.abs(values - 0.45).argmin())
    assert values[here] == pytest.approx(0.45, abs=1e-14)
    assert high - low == pytest.approx(vectors[0, here] ** 2, abs=1e-9)


@pytest.mark.parametrize(("count", "size", "probes"), [(1, 1000, 8), (100, 1000, 2), (500, 1000, 8), (999, 1000, 4)])
def test_interval_covers(count: int, size: int, probes: int) -> None:
    """At a failure probability of 0.1, draws of the χ² variables miss at most 0.1 + 4 standard errors."""
    generator = np.random.default_rng(0)
    above = generator.chisquare(probes * count, 4000)
    below = generator.chisquare(probes * (size - count), 4000)
    shares = above / (above + below)
    edges = [count_interval(float(s), float(s), size, probes, 0.1) for s in shares[:400]]
    missed = np.mean([not low <= count <= high for low, high in edges])
    assert missed <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 400)
    spread = relative_standard_error(count, size, probes)
    assert np.std(shares) / (count / size) == pytest.approx(spread, rel=0.1)


def test_interval_against_beta_quantiles() -> None:
    low, high = count_interval(0.3, 0.3, 1000, 8, 1e-6)
    law = [stats.beta(4 * c, 4 * (1000 - c)) for c in (low, low - 1, high, high + 1)]
    assert law[0].sf(0.3) > 5e-7 >= law[1].sf(0.3)
    assert law[2].cdf(0.3) > 5e-7 >= law[3].cdf(0.3)
    assert count_interval(0.0, 0.0, 50, 8, 1e-6)[0] == 0
    assert count_interval(1.0, 1.0, 50, 8, 1e-6)[1] == 50
    assert count_interval(0.0, 1.0, 50, 8, 1e-6) == (0, 50)
    assert math.isnan(relative_standard_error(0, 50, 8))


def test_top_value() -> None:
    """The theorem's formula, and the bound by gᵀAg where it says nothing."""
    gap = relative_gap(1000, 50, 4, 1e-6)
    assert (1.648 * math.sqrt(1000) * math.exp(-math.sqrt(gap) * 99)) ** 4 == pytest.approx(1e-6)
    settings = {"size": 1000, "probes": 4, "failure": 1e-6, "forms": 7.0}
    assert largest_eigenvalue_bound(2.0, steps=50, invariant=False, **settings) == pytest.approx(2 / (1 - gap))
    assert largest_eigenvalue_bound(2.0, steps=50, invariant=True, **settings) == 2.0
    root = stats.norm.ppf((1 + 1e-6 ** (1 / 4)) / 2)
    assert largest_eigenvalue_bound(2.0, steps=1, invariant=False, **settings) == pytest.approx(7 / root**2)
