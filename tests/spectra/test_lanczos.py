"""Matrix-free ranks of planted spectra: the true count is known, whatever the basis."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import rankscope as rs
from rankscope._base.errors import DataError, MeasurementError, UsageError
from rankscope._base.facts import FactKind, of_kind
from rankscope.spectra.density import SpectralDensity
from rankscope.spectra.exact import exact_bytes, exact_spectrum, matrix_bytes
from rankscope.spectra.lanczos import LanczosProcess, SquaredMap
from rankscope.spectra.matrix_free import Lanczos, matrix_free, spectrum_of_products

N = 400
RTOL = 0.05
Vector = NDArray[np.float64]


def _spectra() -> dict[str, Vector]:
    k = np.arange(1, N + 1)
    generator = np.random.default_rng(0)
    return {
        "power law": 1.0 / k,
        "Gaussian": np.abs(generator.normal(size=N)),
        "exponential": np.exp(-k / 60),
        "spike and tail": np.r_[1.0, 0.1 * np.abs(generator.normal(size=N - 1))],
        "gap at τ": np.r_[np.linspace(1, 0.2, N // 3), np.full(N - N // 3, 0.01)],
        "cluster at τ": np.r_[np.linspace(1, 0.2, N // 4), np.full(N // 4, RTOL * (1 + 1e-6)), np.full(N // 2, 0.001)],
        "equal to τ": np.r_[np.linspace(1, 0.2, N // 4), np.full(N // 4, RTOL), np.full(N // 2, 0.001)],
        "rank 100": np.r_[np.linspace(1, 0.5, 100), np.zeros(N - 100)],
        "rank one": np.r_[1.0, np.zeros(N - 1)],
        "zero": np.zeros(N),
        "repeated": np.repeat([1.0, 0.5, 0.06, 0.04], N // 4),
    }


SPECTRA = _spectra()


def diagonal(sigma: Vector, dtype: torch.dtype = torch.float64) -> SquaredMap:
    values = torch.from_numpy(sigma).to(dtype)[:, None]
    return SquaredMap(lambda q: values * q, lambda q: values * q, (len(sigma), len(sigma)), dtype)


def dense(matrix: torch.Tensor, dtype: torch.dtype = torch.float64) -> SquaredMap:
    a = matrix.to(dtype)
    return SquaredMap(lambda q: a @ q, lambda q: a.T @ q, (a.shape[0], a.shape[1]), dtype)


def rotated(sigma: Vector, rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(sigma)
    left, _ = torch.linalg.qr(torch.randn(rows, n, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (left * torch.from_numpy(sigma)) @ right.T


def true_count(sigma: Vector, rtol: float = RTOL) -> int:
    return int(((sigma >= rtol * sigma.max()) & (sigma > 0)).sum())


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_truth_is_inside(name: str, steps: int) -> None:
    sigma = SPECTRA[name]
    for seed in range(3):  # benchmarks/full.py takes 200
        found = matrix_free(diagonal(sigma), Lanczos(probes=4, steps=steps, seed=seed)).rank(RTOL)
        assert found.lower <= true_count(sigma) <= found.upper, seed
        assert found.lower <= found.value <= found.upper
        assert 0 <= found.bracket <= 1
        assert found.width == found.upper - found.lower


@pytest.mark.parametrize("name", SPECTRA)
def test_float32_products(name: str) -> None:
    """The singular values of the float64 map are the truth; its float32 products differ by their rounding."""
    sigma = SPECTRA[name]
    for seed in range(4):
        settings = Lanczos(probes=4, steps=60, seed=seed)
        one = matrix_free(diagonal(sigma, torch.float32), settings, exact=diagonal(sigma))
        found = one.rank(RTOL)
        assert found.certified
        assert found.lower <= true_count(sigma) <= found.upper
    (fact,) = of_kind(one.facts, FactKind.PRODUCTS_CHECKED)
    assert (fact["probes"], fact["failure"]) == (6, 1e-6)


@pytest.mark.parametrize("error", [1e-5, 1e-3])
def test_wrong_products_widen_the_bounds(error: float) -> None:
    """Products of another map, further off than rounding: 199 singular values lie on the other side of τ."""
    true = np.r_[1.0, np.full(199, RTOL * (1 - error)), np.full(200, 0.001)]
    wrong = np.r_[1.0, np.full(199, RTOL * (1 + error)), np.full(200, 0.001)]
    settings = Lanczos(probes=4, steps=30)
    assert matrix_free(diagonal(wrong), settings).rank(RTOL).lower > 1
    found = matrix_free(diagonal(wrong), settings, exact=diagonal(true)).rank(RTOL)
    assert found.lower <= 1 <= found.upper
    assert found.upper >= 200


def test_unchecked_float32_is_not_certified() -> None:
    found = matrix_free(diagonal(SPECTRA["Gaussian"], torch.float32), Lanczos(probes=4, steps=40))
    rank = found.rank(RTOL)
    assert (rank.lower, rank.upper, rank.certified) == (0, N, False)
    assert rank.value == pytest.approx(true_count(SPECTRA["Gaussian"]), rel=0.1)
    assert of_kind(found.facts, FactKind.PRODUCTS_UNCHECKED)[0].caution


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_any_basis_and_either_side(shape: str) -> None:
    sigma = SPECTRA["power law"][:120]
    a = rotated(sigma, 200)
    a = a if shape == "tall" else a.T.contiguous()
    one = matrix_free(dense(a), Lanczos(probes=4, steps=30))
    assert one.shape == tuple(a.shape)
    assert one.sigma_max == pytest.approx(1.0, rel=1e-6)
    found = one.rank(RTOL)
    assert found.lower <= true_count(sigma) <= found.upper


@pytest.mark.parametrize("name", ["power law", "Gaussian", "gap at τ", "repeated"])
def test_coefficients_against_dense_moments(name: str) -> None:
    """The Gauss rule of m steps has the moments gᵀAᵏg/gᵀg up to k = 2m − 1, by products of our own."""
    sigma = SPECTRA[name]
    process = LanczosProcess(diagonal(sigma), 3, torch.Generator().manual_seed(5))
    starts = torch.randn(3, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    process.extend(4)
    scale = 4.0 ** (process.operator.exponent or 0)
    for p in range(3):
        m = int(process.steps[p])
        a, b = process.alpha[p, :m].numpy() * scale, process.beta[p, : m - 1].numpy() * scale
        values, vectors = np.linalg.eigh(np.diag(a) + np.diag(b, 1) + np.diag(b, -1))
        for k in range(2 * m):
            expected = (starts[p] ** 2 * sigma ** (2 * k)).sum() / (starts[p] ** 2).sum()
            assert (vectors[0] ** 2 * values**k).sum() == pytest.approx(expected, rel=1e-10)
    assert float(process.removed.max() / process.alpha.max()) < 1e-12


def test_basis_stays_orthonormal() -> None:
    process = LanczosProcess(diagonal(SPECTRA["exponential"], torch.float32), 2, torch.Generator().manual_seed(0))
    process.extend(120)
    basis = torch.cat([*process._basis], 1)[0, :120]
    assert float((basis @ basis.T - torch.eye(120, dtype=torch.float64)).abs().max()) < 1e-13
    # float32 products are not symmetric, and this measures it
    assert 1e-9 < float(process.removed.max() / process.alpha.max()) < 1e-5


@pytest.mark.parametrize("exponent", [-532, -40, 3, 500])
def test_powers_of_two_change_nothing(exponent: int) -> None:
    sigma = SPECTRA["Gaussian"]
    one = matrix_free(diagonal(sigma), Lanczos(probes=3, steps=20))
    other = matrix_free(diagonal(np.ldexp(sigma, exponent)), Lanczos(probes=3, steps=20))
    assert np.array_equal(one.alpha, other.alpha)
    assert other.sigma_max == np.ldexp(one.sigma_max, exponent)
    a, b = one.rank(RTOL), other.rank(RTOL)
    assert (a.value, a.lower, a.upper, a.bracket) == (b.value, b.lower, b.upper, b.bracket)
    # an absolute tolerance goes with it
    absolute = other.rank(rs.Tolerance(atol=float(np.ldexp(a.threshold, exponent))))
    assert absolute.value == a.value
    assert absolute.threshold == b.threshold


def test_monotone_in_the_tolerance() -> None:
    one = matrix_free(diagonal(SPECTRA["power law"]), Lanczos(probes=4, steps=12))
    ranks = [one.rank(float(t)) for t in np.logspace(0, -4, 40)]
    assert (np.diff([r.lower for r in ranks]) >= 0).all()
    assert (np.diff([r.upper for r in ranks]) >= 0).all()


def test_steps_below_the_bracket() -> None:
    one = matrix_free(diagonal(SPECTRA["power law"]), Lanczos(probes=2, bracket=0.02), tolerance=RTOL)
    (fact,) = of_kind(one.facts, FactKind.LANCZOS_STEPS)
    assert fact["reason"] == "bracket"
    assert fact["bracket"] == pytest.approx(one.rank(RTOL).bracket, rel=1e-9)  # another batch of the same eigenproblems
    assert fact["bracket"] <= 0.02
    assert fact["steps"] == one.alpha.shape[1]
    tight = LanczosProcess.bytes_needed(N, 2, 32)
    cut = matrix_free(
        diagonal(SPECTRA["power law"]), Lanczos(probes=2, bracket=1e-9), tolerance=1e-3, memory_budget=tight
    )
    (fact,) = of_kind(cut.facts, FactKind.LANCZOS_STEPS)
    assert (fact["reason"], fact["steps"], fact.caution) == ("memory", 32, True)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_fewer_dimensions_than_steps(n: int) -> None:
    sigma = np.linspace(1, 0.01, n)
    found = matrix_free(diagonal(sigma), Lanczos(probes=2, steps=50)).rank(0.5)
    assert (found.value, found.lower, found.upper, found.bracket) == (true_count(sigma, 0.5),) * 3 + (0.0,)


def test_smooth_and_gapped_values_are_within_one_percent() -> None:
    """N = 3,000 and c ≥ N/5: the standard error with 64 probes is below 0.3%, three of them below 1%."""
    k = np.arange(1, 3001)
    for sigma in (np.exp(-k / 600), np.r_[np.linspace(1, 0.3, 900), np.full(2100, 0.005)]):
        c = true_count(sigma)
        assert c >= 600
        assert math.sqrt(2 * (3000 - c) / (c * 3000 * 64)) < 0.005
        found = matrix_free(diagonal(sigma), Lanczos(probes=64, steps=60)).rank(RTOL)
        assert found.value == pytest.approx(c, rel=0.01)


def test_what_moments_give() -> None:
    sigma = SPECTRA["Gaussian"]
    one = matrix_free(diagonal(sigma), Lanczos(probes=16, steps=40))
    truth = rs.Spectrum(sigma, (N, N))
    stable, participation = one.stable_rank, one.participation_ratio
    assert stable is not None
    assert participation is not None
    assert abs(stable.value - truth.stable_rank) < 4 * stable.standard_error < 0.5 * truth.stable_rank
    assert (
        abs(participation.value - truth.participation_ratio)
        < 4 * participation.standard_error
        < 0.5 * truth.participation_ratio
    )
    assert one.effective_rank is None
    assert of_kind(one.facts, FactKind.NOT_FROM_MOMENTS)[0]["names"] == ("effective_rank",)
    zero = matrix_free(diagonal(np.zeros(5)), Lanczos(probes=2, steps=3))
    assert zero.stable_rank is None
    assert zero.participation_ratio is None


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (1, 5)])
@pytest.mark.parametrize("scale", [1.0, 2.0**-532, 2.0**532])
def test_exact_way(shape: tuple[int, int], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(*shape, generator=generator, dtype=torch.float64)
    found, oracle = exact_spectrum(dense(a * scale)), torch.linalg.svdvals(a).numpy() * scale
    assert found.shape == shape
    np.testing.assert_allclose(found.singular_values, oracle, rtol=1e-9)
    for rtol in (0.9, 0.3, 1e-3):
        rank = found.rank(rtol)
        assert rank.lower <= int((oracle >= rtol * oracle.max()).sum()) <= rank.upper


def test_exact_way_in_float32() -> None:
    sigma = SPECTRA["power law"]
    found = exact_spectrum(diagonal(sigma, torch.float32), exact=diagonal(sigma)).rank(RTOL)
    assert found.certified
    assert found.lower <= true_count(sigma) <= found.upper
    assert not exact_spectrum(diagonal(sigma, torch.float32)).rank(RTOL).certified


def test_the_way_is_chosen_by_bytes() -> None:
    operator = diagonal(SPECTRA["power law"])
    assert isinstance(spectrum_of_products(operator, memory_budget=exact_bytes(N)), rs.Spectrum)
    assert isinstance(spectrum_of_products(operator, memory_budget=exact_bytes(N) - 1), SpectralDensity)
    assert isinstance(spectrum_of_products(operator, Lanczos(probes=2, steps=20)), SpectralDensity)
    with pytest.raises(UsageError, match=r'the exact spectrum of a side of 400 needs .* give method="lanczos"'):
        spectrum_of_products(operator, "exact", memory_budget=1000)
    with pytest.raises(UsageError, match="memory_budget is 1,000 bytes; 8 Lanczos probes of 400 entries need"):
        matrix_free(operator, memory_budget=1000)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"probes": 0}, "probes is 0; it must be a whole number of at least 1"),
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"steps": "all"}, "unknown steps 'all'"),
        ({"bracket": 0}, "bracket is 0; it must be a finite number above 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_are_checked(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Lanczos(**given)  # type: ignore[arg-type]


def test_nan_never_wins() -> None:
    sigma = np.r_[np.nan, np.ones(20)]
    with pytest.raises(MeasurementError, match="a product with the Jacobian has 8 NaN or infinite entries"):
        matrix_free(diagonal(sigma), Lanczos(steps=3))
    with pytest.raises(MeasurementError, match="NaN or infinite"):
        exact_spectrum(diagonal(sigma))
    bad = np.full((1, 2), np.nan)
    with pytest.raises(DataError, match="alpha of a spectral density has NaN"):
        SpectralDensity((2, 2), bad, bad, np.array([2]), np.ones(1), np.zeros(1))


def test_is_a_record(tmp_path: Path) -> None:
    one = matrix_free(diagonal(SPECTRA["power law"]), Lanczos(probes=2, steps=15))
    again = SpectralDensity.load(one.save(tmp_path / "density.json"))
    assert again == one
    assert again.rank(1e-2) == one.rank(1e-2)  # a tolerance that nobody asked for at the time
    assert list(one.table().columns) == ["rtol", "value", "lower", "upper", "standard_error", "bracket"]
    assert one.to_dict()["effective_rank"] is None
    assert "400×400, float64: 2 probes, 15 Lanczos steps" in one._repr_html_()
    band = one.plot().collections[0].get_paths()[0].vertices
    assert band[:, 1].max() <= N


def test_as_the_measurement_will_call_it() -> None:
    """``jacobian_rank(columns="all", method=Lanczos(...))``: push and pull of a linear map in both precisions."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Tanh(), torch.nn.Linear(200, 250))
    x = torch.randn(300)

    def linear_map(dtype: torch.dtype) -> SquaredMap:
        at, net = x.to(dtype), model.to(dtype)
        jacobian = torch.func.jacrev(net)(at).detach()
        return dense(jacobian, dtype)

    wide = linear_map(torch.float64)
    oracle = torch.linalg.svdvals(torch.func.jacrev(model)(x.double()).detach()).numpy()
    found = spectrum_of_products(
        linear_map(torch.float32), Lanczos(probes=3, steps=40), tolerance=RTOL, exact=wide, memory_budget="1MB"
    )
    rank = found.rank(RTOL)
    assert rank.certified
    assert rank.lower <= true_count(oracle) <= rank.upper


def test_small_thresholds_take_float64_products() -> None:
    """float32 products err by about 1e-6·σ₁², so they know nothing of singular values at 2e-4·σ₁."""
    sigma = np.r_[np.ones(50), np.full(50, 0.5), np.full(100, 4e-4), np.full(N - 200, 1e-5)]
    settings, rtol = Lanczos(probes=4, steps=30), 2e-4
    rough = matrix_free(diagonal(sigma, torch.float32), settings, tolerance=rtol, exact=diagonal(sigma)).rank(rtol)
    assert rough.lower <= 200 <= rough.upper == N
    both = diagonal(sigma), diagonal(sigma)
    found = spectrum_of_products(
        diagonal(sigma, torch.float32), settings, tolerance=rtol, exact=diagonal(sigma), dense=both, memory_budget="1MB"
    )
    assert isinstance(found, SpectralDensity)
    assert of_kind(found.facts, FactKind.PRODUCTS_IN_FLOAT64)
    assert found.dtype == "float32", "the threshold rule is that of the measurement"
    rank = found.rank(rtol)
    assert rank.lower <= 200 <= rank.upper
    assert rank.upper - rank.lower < (rough.upper - rough.lower) / 2
    wide = spectrum_of_products(
        diagonal(sigma, torch.float32), settings, tolerance=0.1, exact=diagonal(sigma), dense=both, memory_budget="1MB"
    )
    assert isinstance(wide, SpectralDensity)
    assert not of_kind(wide.facts, FactKind.PRODUCTS_IN_FLOAT64)


def counting(given: SquaredMap) -> tuple[SquaredMap, list[str]]:
    """The same map, and which way each of its products went."""
    asked: list[str] = []

    def push(columns: torch.Tensor) -> torch.Tensor:
        asked.append("push")
        return given.push(columns)

    def pull(columns: torch.Tensor) -> torch.Tensor:
        asked.append("pull")
        return given.pull(columns)

    return SquaredMap(push, pull, given.shape, given.dtype), asked


@pytest.mark.parametrize(("smaller", "decides"), [(1e-2, True), (1e-3 * (1 + 1e-5), False)])
def test_float32_serves_where_it_decides(smaller: float, decides: bool) -> None:
    """The whole matrix in float32 errs by 1e-7·σ₁ in σ, so that a gap at 1e-3·σ₁ is read without float64."""
    a = rotated(np.r_[np.ones(50), np.full(50, smaller), np.full(20, 1e-5)], 150)  # N // 100 is 1
    double, asked = counting(dense(a))
    found = spectrum_of_products(
        dense(a, torch.float32), tolerance=1e-3, exact=dense(a), dense=(double, dense(a)), memory_budget="1GB"
    )
    rank = found.rank(1e-3)
    assert (rank.value, rank.lower, rank.upper) == (100, 100, 100)
    assert bool(asked) != decides
    assert found.dtype == "float32"
    double, asked = counting(dense(a))
    both = (double, dense(a))
    spectrum_of_products(
        dense(a, torch.float32), "exact", tolerance=1e-3, exact=dense(a), dense=both, memory_budget="1GB"
    )
    assert asked, "who asks for the exact way has float64"


@pytest.mark.parametrize("shape", [(700, 40), (40, 700)])
def test_the_exact_way_beyond_the_matrix(shape: tuple[int, int]) -> None:
    """Where the whole matrix does not fit, squared products give the same values; the matrix needs one way only."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(*shape, generator=generator, dtype=torch.float64)
    held = matrix_bytes(shape, torch.float64)
    (one, its), (other, others) = counting(dense(a)), counting(dense(a))
    np.testing.assert_allclose(
        exact_spectrum(one, budget=held).singular_values,
        exact_spectrum(other, budget=held - 1).singular_values,
        rtol=1e-12,
    )
    assert set(its) == {"push" if shape[0] > shape[1] else "pull"}
    assert set(others) == {"push", "pull"}


@pytest.mark.slow
def test_the_steps_that_decide_the_precision_are_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether float32 serves is seen by the first steps; they and the compared products are those that follow."""
    matrix = rotated(SPECTRA["exponential"], 500)
    taken: list[int] = []

    def counted() -> SquaredMap:
        a = matrix.float()

        def push(q: torch.Tensor) -> torch.Tensor:
            taken.append(q.shape[1])
            return a @ q

        return SquaredMap(push, lambda q: a.T @ q, (500, N), torch.float32)

    settings, exact, wide = Lanczos(probes=3, steps=20, seed=4), dense(matrix), (dense(matrix), dense(matrix))
    tolerance = rs.Tolerance(atol=0.05)  # far above the error of float32, which is looked at for it all the same
    plain = matrix_free(counted(), settings, tolerance=tolerance, exact=exact)
    alone = list(taken)
    taken.clear()
    looked = spectrum_of_products(counted(), settings, tolerance=tolerance, exact=exact, dense=wide)
    assert isinstance(looked, SpectralDensity)
    assert taken == alone
    assert np.array_equal(looked.alpha, plain.alpha)
    assert np.array_equal(looked.beta, plain.beta)
    assert looked.product_error == plain.product_error
    for steps in (5, 8, 30):
        fewer = Lanczos(probes=3, steps=steps, seed=4)
        one = spectrum_of_products(counted(), fewer, tolerance=tolerance, exact=exact, dense=wide)
        other = matrix_free(counted(), fewer, tolerance=tolerance, exact=exact)
        assert isinstance(one, SpectralDensity)
        assert np.array_equal(one.alpha, other.alpha), steps


def test_full_rank_is_within_the_bounds_whatever_the_probes_weigh() -> None:
    """Shares of one, weighted, summed to 1 − 2⁻⁵³, so that N − 1 was the upper bound where N is right."""
    alpha, beta = np.tile([1.0, 1.1, 0.9], (16, 1)), np.full((16, 3), 0.3)  # all above 0.4
    for seed in range(40):
        norms = np.random.default_rng(seed).chisquare(120, 16)
        density = SpectralDensity((120, 120), alpha, beta, np.full(16, 3), norms, np.zeros(16))
        assert density.rank(0.01).upper == 120
