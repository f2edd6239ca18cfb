"""Prescribed spectra, soft ranks against independent formulas, and bounds that must never be left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rankscope as rs
from rankscope.spectra import norm_bound

TOLERANCES = [
    "paper",
    "reference",
    "torch",
    rs.Tolerance(rtol=0.05),
    rs.Tolerance(atol=0.3),
    rs.Tolerance(rtol=0.2, atol=0.1),
]


def prescribed(sigma: np.ndarray, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Orthogonal × diagonal × orthogonal."""
    k = min(rows, columns)
    if k == 0:
        return np.zeros((rows, columns))
    left = scipy.stats.ortho_group.rvs(rows, random_state=seed) if rows > 1 else np.eye(1)
    right = scipy.stats.ortho_group.rvs(columns, random_state=seed + 1) if columns > 1 else np.eye(1)
    return (left[:, :k] * sigma) @ right[:, :k].T


@pytest.mark.parametrize(("rows", "columns"), [(9, 5), (5, 9), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_prescribed(rows: int, columns: int, kind: type) -> None:
    sigma = np.logspace(0, -4, min(rows, columns))
    matrix = prescribed(sigma, rows, columns).astype(kind)
    for given_as in (matrix, torch.from_numpy(matrix), matrix.tolist(), matrix[::-1]):
        spectrum = rs.Spectrum.of(given_as)
        np.testing.assert_allclose(spectrum.singular_values, sigma, atol=2e-7 if kind is np.float32 else 1e-14)
        assert spectrum.shape == (rows, columns)
        assert spectrum.singular_values.dtype == np.float64
    assert rs.Spectrum.of(matrix).dtype == matrix.dtype.name
    assert rs.Spectrum.of(matrix.tolist()).dtype == "float64"


def test_nested_lists_keep_float64() -> None:
    assert rs.Spectrum.of([[1.0, 0.0], [0.0, 1e-60]]).singular_values[1] == 1e-60


def test_exact_rank_300_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1000, 300, generator=generator) @ torch.randn(300, 768, generator=generator)
    estimate = rs.Spectrum.of(a, error_bound=4e-6 * float(torch.linalg.matrix_norm(a, 2))).rank("paper")
    assert (estimate.value, estimate.lower, estimate.upper) == (300, 300, 300)


def test_zero_empty_and_not_finite() -> None:
    for tolerance in TOLERANCES:
        zero = rs.Spectrum.of(torch.zeros(4, 3)).rank(tolerance)
        assert (zero.value, zero.lower, zero.upper) == (0, 0, 0)
        for shape in ((0, 5), (5, 0), (0, 0)):
            empty = rs.Spectrum.of(torch.zeros(shape))
            assert (empty.rank(tolerance).value, empty.rank(tolerance).upper) == (0, 0)
            assert empty.rank(tolerance).margin == math.inf
            assert empty.stability_radius(tolerance) == math.inf
    assert rs.Spectrum.of(torch.zeros(4, 3)).is_zero
    assert not rs.Spectrum.of(torch.eye(2)).is_zero
    with pytest.raises(rs.DataError, match="the matrix has 2 NaN or infinite entries"):
        rs.Spectrum.of([[math.nan, 1.0], [math.inf, 1.0]])
    with pytest.raises(rs.DataError, match="needs a matrix; this has shape"):
        rs.Spectrum.of(torch.zeros(3))
    with pytest.raises(rs.DataError, match="not a matrix of numbers"):
        rs.Spectrum.of([["a", "b"]])
    with pytest.raises(rs.DataError, match="not a matrix of numbers"):
        rs.Spectrum.of([[1.0, 2.0], [3.0]])
    with pytest.raises(rs.DataError, match="1 of 2 singular values are NaN"):
        rs.Spectrum(np.array([1.0, math.nan]), (2, 2))
    with pytest.raises(rs.DataError, match=r"a \(2, 2\) matrix has 2 singular values"):
        rs.Spectrum(np.array([1.0]), (2, 2))
    with pytest.raises(rs.DataError, match="a singular value is negative: -1"):
        rs.Spectrum(np.array([1.0, -1.0]), (2, 2))


def test_a_zero_matrix_with_an_error_is_not_certainly_zero() -> None:
    estimate = rs.Spectrum(np.zeros(3), (3, 3), error_bound=1e-3).rank("paper")
    assert (estimate.value, estimate.lower, estimate.upper) == (0, 0, 3)


def test_the_record() -> None:
    spectrum = rs.Spectrum(np.array([1.0, 3.0, 2.0]), (3, 5), "float32", error_bound=math.nan)
    assert spectrum.singular_values.tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match="read-only"):
        spectrum.singular_values[0] = 7
    estimate = spectrum.rank()
    assert (estimate.lower, estimate.upper, estimate.certified) == (0, 3, False)
    assert int(estimate) == 3
    assert str(estimate) == "3 not certified (paper, float32)"
    assert "rank 3 (paper), effective rank" in repr(spectrum)
    assert str(rs.Spectrum(np.ones(2), (2, 2), error_bound=0.6).rank(0.5)) == (
        "2 [0, 2] (constant (rtol=0.5), float64, 2 near the threshold)"
    )


def test_uncertified_torch_threshold_uses_the_dtype() -> None:
    sigma = np.array([1.0, 1e-6])
    assert rs.Spectrum(sigma, (100, 2), "float32").rank("torch").value == 1
    assert rs.Spectrum(sigma, (100, 2), "float64").rank("torch").value == 2


# ---- soft ranks ------------------------------------------------------------------------------------------------------

SPECTRA = [
    np.array([5.0, 3.0, 1.0, 0.2]),
    np.array([1.0, 1.0, 1.0]),
    np.array([1.0, 0.0, 0.0]),
    np.logspace(3, -5, 12),
    np.array([7.0]),
]


@pytest.mark.parametrize("sigma", SPECTRA, ids=range(len(SPECTRA)))
def test_soft_ranks(sigma: np.ndarray) -> None:
    spectrum = rs.Spectrum(sigma, (len(sigma), len(sigma)))
    p = sigma / sum(sigma)
    assert spectrum.effective_rank == pytest.approx(math.exp(scipy.stats.entropy(sigma)), rel=1e-12)
    q = [v + 1e-7 for v in p]
    assert spectrum.rankme == pytest.approx(math.exp(-sum(v * math.log(v) for v in q)), rel=1e-12)
    matrix = np.diag(sigma)
    assert spectrum.stable_rank == pytest.approx(np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2)
    covariance = matrix @ matrix.T
    assert spectrum.participation_ratio == pytest.approx(np.trace(covariance) ** 2 / np.trace(covariance @ covariance))
    assert spectrum.nuclear_norm == pytest.approx(np.linalg.norm(matrix, "nuc"))
    with np.errstate(divide="ignore"):
        assert spectrum.condition_number == pytest.approx(np.max(sigma) / np.min(sigma))
    for delta in (0.01, 0.1, 0.5):
        least = next(k for k in range(1, len(sigma) + 1) if sum(sigma[:k]) >= (1 - delta) * sum(sigma) * (1 - 1e-15))
        assert spectrum.srank(delta) == least


def test_srank_at_its_share() -> None:
    # the top value alone holds exactly 1 − δ
    assert rs.Spectrum(np.array([3.0, 1.0]), (2, 2)).srank(0.25) == 1
    assert rs.Spectrum(np.array([3.0, 1.0]), (2, 2)).srank(0.2499) == 2
    assert rs.Spectrum(np.array([985.0, 10.0, 5.0]), (3, 3)).srank() == 2  # δ = 0.01 by default


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_srank_needs_a_share(delta: float) -> None:
    with pytest.raises(rs.UsageError, match="needs a share between 0 and 1"):
        rs.Spectrum.of(np.eye(2)).srank(delta)


def test_soft_ranks_of_zero() -> None:
    zero = rs.Spectrum(np.zeros(3), (3, 3))
    values = (zero.effective_rank, zero.stable_rank, zero.participation_ratio, zero.rankme, zero.srank())
    assert values == (0, 0, 0, 0, 0)
    assert zero.nuclear_norm == 0
    assert math.isnan(zero.condition_number)


# ---- bounds ----------------------------------------------------------------------------------------------------------

positive = st.floats(1e-6, 10.0)


@settings(max_examples=150, deadline=None)
@given(
    sigma=st.lists(positive, min_size=1, max_size=7),
    rows=st.integers(0, 3),
    error=st.floats(0.0, 0.5),
    seed=st.integers(0, 10_000),
    tolerance=st.sampled_from(TOLERANCES),
)
def test_no_perturbation_of_the_stated_norm_leaves_the_bounds(
    sigma: list[float], rows: int, error: float, seed: int, tolerance: rs.Tolerance
) -> None:
    rng = np.random.default_rng(seed)
    n = len(sigma)
    matrix = prescribed(np.sort(sigma)[::-1], n + rows, n, seed)
    noise = rng.standard_normal(matrix.shape)
    if seed % 3 == 0:  # the worst direction: along a singular pair
        u, _, vt = np.linalg.svd(matrix, full_matrices=False)
        k = rng.integers(n)
        noise = rng.choice([-1, 1]) * np.outer(u[:, k], vt[k])
    noise *= error / max(np.linalg.norm(noise, 2), 1e-300)
    estimate = rs.Spectrum.of(matrix, error_bound=error * (1 + 1e-12)).rank(tolerance)
    true = rs.Spectrum.of(matrix + noise).rank(tolerance)
    assert estimate.lower <= estimate.value <= estimate.upper
    assert estimate.lower <= true.upper
    assert true.lower <= estimate.upper
    if abs(true.margin) > 1e-9:
        assert estimate.lower <= true.value <= estimate.upper
    assert estimate.near == estimate.upper - estimate.lower


def test_bounds_by_hand() -> None:
    # τ = 0.5, slack = 1.5·0.1: σ ≥ 0.65 surely count, σ < 0.35 surely do not
    spectrum = rs.Spectrum(np.array([1.0, 0.66, 0.64, 0.5, 0.36, 0.34]), (6, 6), error_bound=0.1)
    estimate = spectrum.rank(0.5)
    assert (estimate.lower, estimate.value, estimate.upper) == (2, 4, 5)
    assert estimate.margin == 0.0
    # an absolute threshold does not move with σ₁: slack = 0.1
    estimate = spectrum.rank(rs.Tolerance(atol=0.45))
    assert (estimate.lower, estimate.value, estimate.upper) == (3, 4, 5)
    assert estimate.margin == pytest.approx(0.05 / 0.45)
    # an error in σ²
    squared = rs.Spectrum(np.array([1.0, 0.52, 0.48, 0.1]), (4, 4), square_error=0.03).rank(rs.Tolerance(atol=0.5))
    assert (squared.lower, squared.value, squared.upper) == (1, 2, 3)


def test_stability_radius_is_never_violated() -> None:
    """Theorem 1, 2,000 random trials, and perturbations just past it that do change the rank."""
    rng = np.random.default_rng(0)
    crossed = 0
    for trial in range(2000):
        rows, columns = rng.integers(1, 8, 2)
        matrix = rng.standard_normal((rows, columns)) * np.logspace(0, -rng.uniform(0, 3), columns)
        rtol = float(rng.choice([1e-3, 0.05, 0.3]))
        spectrum = rs.Spectrum.of(matrix)
        direction = rng.standard_normal((rows, columns))
        if trial % 2:
            u, _, vt = np.linalg.svd(matrix, full_matrices=False)
            k = rng.integers(min(rows, columns))
            direction = np.outer(u[:, k], vt[k])
        radius = spectrum.stability_radius(rtol, direction=direction)
        sign = rng.choice([-1, 1])
        before = spectrum.rank(rtol).value
        assert rs.Spectrum.of(matrix + 0.999999 * sign * radius * direction).rank(rtol).value == before
        crossed += rs.Spectrum.of(matrix + 1.7 * sign * radius * direction).rank(rtol).value != before
    assert crossed > 100  # the radius is not so small that it says nothing


def test_stability_radius_by_hand() -> None:
    spectrum = rs.Spectrum(np.array([2.0, 1.5, 0.4]), (3, 3))
    assert spectrum.stability_radius(0.5) == pytest.approx(0.5 / 1.5)
    assert spectrum.stability_radius(0.5, direction=2.0) == pytest.approx(0.25 / 1.5)
    assert spectrum.stability_radius(0.5, direction=np.diag([4.0, 1.0, 0.0])) == pytest.approx(0.125 / 1.5)
    assert spectrum.stability_radius(rs.Tolerance(atol=1.0)) == pytest.approx(0.5)
    assert spectrum.stability_radius(0.5, direction=np.zeros((3, 3))) == math.inf


def test_composition_bound() -> None:
    """Rank_{rtol·κ}(BA) ≤ Rank_rtol(A) with κ = ‖A‖‖B‖/‖BA‖."""
    rng = np.random.default_rng(1)
    for _ in range(1000):
        a = rng.standard_normal((5, 4)) * np.logspace(0, -4, 4)
        b = rng.standard_normal((6, 5)) * np.logspace(0, -3, 5)
        first, second, both = rs.Spectrum.of(a), rs.Spectrum.of(b), rs.Spectrum.of(b @ a)
        kappa = first.sigma_max * second.sigma_max / both.sigma_max
        assert both.rank(0.01 * kappa).value <= first.rank(0.01).value


def test_norm_bound() -> None:
    rng = np.random.default_rng(2)
    for trial in range(200):
        matrix = rng.standard_normal((8, 6)) * np.logspace(0, -(trial % 5), 6)
        products = torch.from_numpy(matrix @ rng.standard_normal((6, 6)))
        true = np.linalg.norm(matrix, 2)
        bound = norm_bound(products)
        assert true <= bound <= 100 * true
        assert norm_bound(products.T, dim=0) == bound == norm_bound(products.T, dim=-2)
    assert math.isnan(norm_bound(torch.zeros(3, 0)))
    assert norm_bound(torch.zeros(3, 2)) == 0
    assert math.isnan(norm_bound(torch.full((3, 2), math.nan)))
    assert norm_bound(torch.tensor([[3.0], [4.0]])) == pytest.approx(50 * math.sqrt(2 / math.pi))
    with pytest.raises(rs.UsageError, match="products must be a matrix"):
        norm_bound(torch.zeros(3))
