"""Theorem 5 and Corollary 1: closed forms against simulation, and the paper's misprint shut out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma, polygamma
from scipy.stats import chi2

from rankscope import DataError, UsageError
from rankscope.theory import (
    critical_std,
    depth_to_rank,
    gaussian_exponents,
    growth_rate,
    marchenko_pastur_rank,
    predicted_rank,
    stability_radius,
)

EULER = 0.5772156649015329


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_exponents_and_variances_match_the_diagonal_of_qr(n: int):
    # a Gaussian matrix has a rotation-invariant law, so log|R_kk| of one QR has the exponent as its mean
    rng = np.random.default_rng(n)
    trials = 20_000
    r = np.linalg.qr(1.7 * rng.standard_normal((trials, n, n)), mode="r")
    logs = np.log(np.abs(np.diagonal(r, axis1=1, axis2=2)))
    found = gaussian_exponents(n, std=1.7)
    assert np.all(np.abs(logs.mean(0) - found.exponents) < 4.5 * np.sqrt(found.variances / trials))
    # the fourth moment of log χ² gives the error of a sample variance
    fourth = ((logs - logs.mean(0)) ** 4).mean(0)
    error = np.sqrt((fourth - logs.var(0) ** 2) / trials)
    assert np.all(np.abs(logs.var(0, ddof=1) - found.variances) < 4.5 * error)


def test_exponents_match_a_long_product():
    n, depth, chains = 4, 60, 3000
    rng = np.random.default_rng(0)
    top = np.zeros(chains)
    volume = np.zeros(chains)
    vector = np.zeros((chains, n, 1))
    vector[:, 0] = 1
    for _ in range(depth):
        g = rng.standard_normal((chains, n, n))
        vector = g @ vector
        length = np.linalg.norm(vector, axis=1, keepdims=True)
        vector = vector / length
        top += np.log(length[:, 0, 0])
        volume += np.linalg.slogdet(g)[1]
    found = gaussian_exponents(n)
    for rates, expected in ((top / depth, found.exponents[0]), (volume / depth, found.exponents.sum())):
        assert abs(rates.mean() - expected) < 4.5 * rates.std() / math.sqrt(chains)
    assert top.var() / depth == pytest.approx(found.variances[0], rel=0.12)


def test_known_values():
    # ψ(1) = −γ, ψ(1/2) = −γ − 2 log 2
    found = gaussian_exponents(2)
    np.testing.assert_allclose(found.exponents, [0.5 * (math.log(2) - EULER), 0.5 * (-EULER - math.log(2))], rtol=1e-14)
    np.testing.assert_allclose(found.variances, [math.pi**2 / 24, math.pi**2 / 8], rtol=1e-14)
    half = (7 - np.arange(7)) / 2
    np.testing.assert_allclose(
        gaussian_exponents(7, std=0.3).exponents, math.log(0.3) + 0.5 * (math.log(2) + digamma(half)), rtol=1e-13
    )
    np.testing.assert_allclose(gaussian_exponents(7).variances, polygamma(1, half) / 4, rtol=1e-13)


def test_exponents_match_integrals_over_chi_squared():
    for n, k in ((1, 1), (6, 2), (6, 6)):
        degrees = n - k + 1
        mean = chi2(degrees).expect(lambda x: 0.5 * np.log(x))
        assert gaussian_exponents(n).exponents[k - 1] == pytest.approx(mean, abs=1e-6)


def test_the_misprint_does_not_pass():
    n = 10
    half = (n - np.arange(n)) / 2
    misprinted = 1 / digamma(half)  # Γ/Γ′, as the text prints ψ
    ratios = np.exp(0.5 * (misprinted - misprinted[0]))
    assert ratios.max() > 1  # impossible: singular values are sorted
    found = gaussian_exponents(n)
    assert found.ratios[0] == 1
    assert np.all(np.diff(found.ratios) < 0)
    assert np.all(found.ratios <= 1)
    assert np.abs(found.ratios - ratios).max() > 0.05


def test_growth_is_the_first_exponent_and_zero_at_the_critical_std():
    for n in (1, 2, 5, 1000):
        assert growth_rate(n, std=0.7) == pytest.approx(gaussian_exponents(n, std=0.7).exponents[0], abs=1e-12)
        critical = critical_std(n)
        assert growth_rate(n, std=critical) == pytest.approx(0, abs=1e-12)
        assert growth_rate(n, std=critical * 1.01) > 0
        assert growth_rate(n, std=critical * 0.99) < 0
    assert critical_std(1000) == pytest.approx(1 / math.sqrt(999), rel=1e-5)


def test_corollary_1_fails_at_width_one():
    assert growth_rate(1) == pytest.approx(-0.5 * (EULER + math.log(2)))
    assert growth_rate(1) < 0
    assert all(growth_rate(n) > 0 for n in range(2, 50))
    numbers = np.log(np.abs(np.random.default_rng(3).standard_normal((2000, 100)))).sum(1)
    assert numbers.max() < 0
    assert gaussian_exponents(1).ratios.tolist() == [1.0]
    assert predicted_rank(1, 10_000).rank == 1


def test_explosion_only_above_the_critical_std():
    n, depth = 12, 4000
    rng = np.random.default_rng(5)
    vector, logs = np.ones(n) / math.sqrt(n), 0.0
    for _ in range(depth):
        vector = rng.standard_normal((n, n)) @ vector
        length = float(np.linalg.norm(vector))
        vector, logs = vector / length, logs + math.log(length)
    spread = 4.5 * gaussian_exponents(n).standard_errors(depth)[0]
    for std in (0.8, 0.95, 1.05, 1.3):
        rate = logs / depth + math.log(std * critical_std(n))
        assert abs(rate - growth_rate(n, std=std * critical_std(n))) < spread
        assert (rate > 0) == (std > 1)


@pytest.mark.parametrize(
    ("depth", "fuss", "fifth"),
    [
        (1, (1000, 986), (1000, 1000)),
        (10, (748, 450), (836, 595)),
        (20, (506, 262), (595, 364)),
        (50, (248, 116), (303, 166)),
    ],
)
def test_the_table_of_width_1000(depth: int, fuss: tuple[int, int], fifth: tuple[int, int]):
    for tolerance, first, second in zip(("paper", "reference"), fuss, fifth, strict=True):
        assert abs(predicted_rank(1000, depth, tolerance, law="fuss-catalan").value - first) <= 1
        found = predicted_rank(1000, depth, tolerance, law="lyapunov")
        assert found.value == second
        assert not found.in_range
        assert predicted_rank(1000, depth, tolerance).law == "tracy-widom"


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("rtol", [0.5, 1e-2, 1e-5])
def test_fuss_catalan_matches_its_density_integrated(depth: int, rtol: float):
    # the law's moments are the Fuss–Catalan numbers; its distribution by integrating x dP by hand from the parametric
    # density ρ(φ) = sin²φ·sin^{L−1}(Lφ)/(π·sin^L((L+1)φ)), a formula that the code does not use
    phi = np.linspace(0, math.pi / (depth + 1), 400_001)[1:-1]
    x = np.sin((depth + 1) * phi) ** (depth + 1) / (np.sin(phi) * np.sin(depth * phi) ** depth)
    log_density = (
        2 * np.log(np.sin(phi)) + (depth - 1) * np.log(np.sin(depth * phi)) - depth * np.log(np.sin((depth + 1) * phi))
    )
    density = np.exp(log_density) / math.pi
    mass = 0.5 * (density[1:] + density[:-1]) * -np.diff(x)
    top = (depth + 1) ** (depth + 1) / depth**depth
    middle = 0.5 * (x[1:] + x[:-1])
    expected = mass[middle >= rtol**2 * top].sum()
    assert predicted_rank(10_000, depth, rtol, law="fuss-catalan").value / 10_000 == pytest.approx(expected, abs=3e-4)
    assert (mass * middle).sum() == pytest.approx(1, abs=2e-3)  # the first Fuss–Catalan number


@pytest.mark.parametrize(
    ("n", "depth", "tolerance"), [(60, 1, 0.05), (60, 4, 1e-3), (60, 30, 1e-6), (100, 8, "reference")]
)
def test_predicted_rank_matches_simulated_chains(n: int, depth: int, tolerance: str | float):
    from rankscope.theory import chain_singular_values

    rng = np.random.default_rng(1)
    counts = [
        chain_singular_values([rng.standard_normal((n, n)) for _ in range(depth)]).rank(tolerance) for _ in range(12)
    ]
    error = np.std(counts, ddof=1) / math.sqrt(len(counts))
    assert abs(np.mean(counts) - predicted_rank(n, depth, tolerance).value) < 0.5 + 3 * error


def test_theorem_5_is_the_law_of_great_depth():
    from rankscope.theory import chain_singular_values

    n, depth, rtol = 5, 300, 1e-60
    rng = np.random.default_rng(0)
    counts = [chain_singular_values(rng.standard_normal((depth, n, n)).tolist()).rank(rtol) for _ in range(4)]
    found = predicted_rank(n, depth, rtol)
    assert found.law == "lyapunov-mean"
    assert found.in_range
    assert abs(np.mean(counts) - found.value) <= 1
    assert predicted_rank(n, 10**9).rank == 1


def test_prediction_is_monotone_and_bounded():
    for law in ("auto", "fuss-catalan", "lyapunov"):
        values = [predicted_rank(50, depth, 1e-3, law=law).value for depth in range(1, 200)]
        assert all(1 <= v <= 50 for v in values)
        assert np.all(np.diff(values) <= 1e-9) or law == "auto"
    assert predicted_rank(50, 10, 1.0).value == 1
    assert predicted_rank(50, 10, 0.0).value == 50
    assert predicted_rank(50, 10, 0.0, law="lyapunov").value == 50


def test_the_scale_goes_by_place_or_by_name():
    np.testing.assert_array_equal(gaussian_exponents(4, 2.0).exponents, gaussian_exponents(4, std=2.0).exponents)
    assert growth_rate(4, 0.5) == growth_rate(4, std=0.5) != growth_rate(4)


def test_depth_to_rank_is_the_first_such_depth():
    for n, rank, law in ((1000, 248, "auto"), (50, 10, "fuss-catalan"), (50, 10, "lyapunov"), (10, 1, "auto")):
        depth = depth_to_rank(n, rank, law=law)
        assert predicted_rank(n, depth, law=law).rank <= rank
        assert depth == 1 or predicted_rank(n, depth - 1, law=law).rank > rank
    assert depth_to_rank(10, 10) == 1
    with pytest.raises(UsageError, match="rank is 99, above the width n = 10; no chain has that rank: give 1 to 10"):
        depth_to_rank(10, 99)


def test_marchenko_pastur_matches_simulation():
    rng = np.random.default_rng(2)
    for rows, columns, rtol in ((60, 60, 0.05), (120, 40, 0.4), (40, 120, 0.5), (80, 60, 0.2)):
        counts = []
        for _ in range(60):
            sigma = np.linalg.svd(rng.standard_normal((rows, columns)), compute_uv=False)
            counts.append(int((sigma >= rtol * sigma[0]).sum()))
        error = np.std(counts, ddof=1) / math.sqrt(len(counts))
        assert abs(np.mean(counts) - marchenko_pastur_rank(rows, columns, rtol)) < 0.5 + 3 * error
    # depth one of the chains is the same law
    for rtol in (0.3, 1e-2, 1e-4):
        expected = predicted_rank(500, 1, rtol, law="tracy-widom").value
        assert marchenko_pastur_rank(500, 500, rtol) == pytest.approx(expected, abs=1e-6)
    assert marchenko_pastur_rank(500, 5, 1e-3) == 5
    assert marchenko_pastur_rank(1, 1) == 1
    assert marchenko_pastur_rank(9, 9, 1.0) == 1


def test_records_serialise_and_print():
    import json

    prediction = predicted_rank(1000, 50, law="lyapunov")
    plain = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
    assert plain["rank"] == int(prediction) == 303
    assert plain["depth_range"] == [4000, None]
    assert "OUTSIDE the law's range L ≥ 4,000" in str(prediction)
    exponents = gaussian_exponents(3, std=2)
    assert json.loads(json.dumps(exponents.to_dict()))["exponents"] == exponents.exponents.tolist()
    assert "n=3" in repr(exponents)
    with pytest.raises(ValueError, match="read-only"):
        exponents.exponents[0] = 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_exponents(0), "n is 0; it must be a whole number of at least 1"),
        (lambda: gaussian_exponents(2.5), "n is 2.5"),
        (lambda: gaussian_exponents(True), "n is True"),
        (lambda: gaussian_exponents(3, std=0), "std is 0; it must be a finite number above 0"),
        (lambda: gaussian_exponents(3, std=math.nan), "std is nan"),
        (lambda: growth_rate(3, std=-1), "std is -1"),
        (lambda: critical_std(0), "n is 0"),
        (lambda: gaussian_exponents(3).standard_errors(0), "depth is 0"),
        (lambda: predicted_rank(0, 5), "n is 0"),
        (lambda: predicted_rank(5, 0), "depth is 0"),
        (lambda: predicted_rank(5, 5, law="fuss-catalon"), "unknown law 'fuss-catalon'.*fuss-catalan"),
        (lambda: predicted_rank(5, 5, "papr"), "paper"),
        (lambda: depth_to_rank(5, 0), "rank is 0"),
        (lambda: depth_to_rank(5, 3, law="gauss"), "unknown law 'gauss'"),
        (lambda: depth_to_rank(5, 3, 0.0), "rtol is 0: a Gaussian chain keeps exact rank"),
        (lambda: marchenko_pastur_rank(0, 5), "rows is 0"),
        (lambda: marchenko_pastur_rank(5, 0), "columns is 0"),
    ],
)
def test_bad_input(call, message: str):
    with pytest.raises(UsageError, match=message):
        call()


def test_absolute_tolerances_are_refused():
    from rankscope.spectra import Tolerance

    for call in (lambda t: predicted_rank(5, 5, t), lambda t: marchenko_pastur_rank(5, 5, t)):
        with pytest.raises(UsageError, match="has an absolute part"):
            call(Tolerance(atol=1e-3))


def test_stability_radius():
    a = np.diag([1.0, 0.4])
    radius = stability_radius(a, 0.2)
    assert radius == pytest.approx(0.2 / 1.2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        m, d = rng.standard_normal((2, 6, 6))
        delta = stability_radius(m, 0.1, direction=d)
        for sign in (-1, 1):
            before = np.linalg.svd(m, compute_uv=False)
            after = np.linalg.svd(m + sign * 0.999 * delta * d, compute_uv=False)
            assert (before >= 0.1 * before[0]).sum() == (after >= 0.1 * after[0]).sum()
    with pytest.raises(DataError, match="finite"):
        stability_radius([[np.nan]])
