"""Low ranks counted one by one: planted spectra, and the inequality itself beside dense eigenvalues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rankscope._base.facts import FactKind, of_kind
from rankscope.spectra.deflation import leading_part
from rankscope.spectra.density import SpectralDensity
from rankscope.spectra.lanczos import LanczosProcess, SquaredMap
from rankscope.spectra.matrix_free import Lanczos, matrix_free

N = 600
RTOL = 0.05
Vector = NDArray[np.float64]
TAIL = 0.02 * np.abs(np.random.default_rng(0).normal(size=N))


def _low() -> dict[str, Vector]:
    zeros = np.zeros(N)
    planted = {
        "rank one": [1.0],
        "rank three": [1.0, 0.9, 0.06],
        "rank 40": np.linspace(1, 0.5, 40),
        "rank 40, repeated": np.ones(40),
        "two clusters": [*np.ones(9), *np.full(9, 0.5)],
        "cluster just above": [1.0, *np.full(12, RTOL * (1 + 1e-6))],
        "cluster just below": [1.0, *np.full(12, RTOL * (1 - 1e-6))],
    }
    made = {name: np.r_[values, zeros[len(values) :]] for name, values in planted.items()}
    made["ten and a tail"] = np.r_[np.linspace(1, 0.2, 10), np.minimum(TAIL[10:], 0.03)]
    return made


LOW = _low()


def diagonal(sigma: Vector, dtype: torch.dtype = torch.float64) -> SquaredMap:
    values = torch.from_numpy(sigma).to(dtype)[:, None]
    return SquaredMap(lambda q: values * q, lambda q: values * q, (len(sigma), len(sigma)), dtype)


def count(sigma: Vector, rtol: float = RTOL) -> int:
    return int(((sigma >= rtol * sigma.max()) & (sigma > 0)).sum())


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("probes", [1, 4])
def test_low_ranks_are_counted(name: str, probes: int) -> None:
    """float64 products: nothing but rounding is left, so lower and upper are the rank."""
    for seed in range(3):
        one = matrix_free(diagonal(LOW[name]), Lanczos(probes=probes, steps=50, seed=seed), tolerance=RTOL)
        found = one.rank(RTOL)
        truth = count(LOW[name])
        assert (found.lower, found.value, found.upper) == (truth, truth, truth), seed
        assert found.standard_error == 0.0
        assert of_kind(one.facts, FactKind.LEADING_COUNTED)


@pytest.mark.parametrize("name", LOW)
def test_float32_products_are_inside(name: str) -> None:
    """The clusters at τ(1 ± 1e-6) are closer than float32 products resolve: both counts have to be inside."""
    sigma = LOW[name]
    for seed in range(3):
        one = matrix_free(
            diagonal(sigma, torch.float32),
            Lanczos(probes=4, steps=50, seed=seed),
            tolerance=RTOL,
            exact=diagonal(sigma),
        )
        found = one.rank(RTOL)
        assert found.lower <= count(sigma) <= found.upper
        if "cluster just" not in name:
            assert found.lower == found.upper


def test_other_tolerances_of_the_same_probes() -> None:
    sigma = LOW["ten and a tail"]
    one = matrix_free(diagonal(sigma), Lanczos(probes=4, steps=50), tolerance=RTOL)
    for rtol in np.geomspace(1, 1e-3, 25):
        found = one.rank(float(rtol))
        assert found.lower <= count(sigma, float(rtol)) <= found.upper
        assert found.lower <= found.value <= found.upper
    assert one.rank(0.5).lower == one.rank(0.5).upper == count(sigma, 0.5)
    assert one.rank(0.5).threshold == pytest.approx(0.5 * sigma.max(), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_whatever_was_taken_out(steps: int, seed: int) -> None:
    """Ritz vectors of a few steps are far from eigenvectors: the residual widens the bounds and they hold."""
    sigma = np.sort(np.r_[np.linspace(1, 0.3, 6), np.full(N - 6, 0.1) * np.linspace(0.2, 1, N - 6)])[::-1].copy()
    operator, generator = diagonal(sigma), torch.Generator().manual_seed(seed)
    process = LanczosProcess(operator, 3, generator)
    process.extend(steps)
    scale = 4.0 ** (operator.exponent or 0)
    given = {"generator": generator, "product_error": 0.0, "failure": 1e-6, "products": 10**6, "budget": 10**9}
    part = leading_part(process, operator, 0.15**2 / scale, **given)
    assert part is not None
    basis_free = np.sort(sigma**2)[::-1] / scale
    for x in np.linspace(part.rest * 1.001, 1 / scale, 40):
        truth = int((basis_free >= x).sum())
        moved = part.error + (part.residual + part.error) ** 2 / (x - part.rest)
        assert int((part.values >= x + part.error).sum()) <= truth <= int((part.values >= x - moved).sum())


def test_a_smooth_spectrum_is_left_to_the_probes() -> None:
    sigma = np.linspace(0.1, 0.001, 2000) + np.r_[0.9, np.zeros(1999)]
    one = matrix_free(diagonal(sigma), Lanczos(probes=4, steps=50), tolerance=RTOL)
    truth = count(sigma)
    assert truth > 900
    assert not of_kind(one.facts, FactKind.LEADING_COUNTED)
    assert one.rest == np.inf
    found = one.rank(RTOL)
    assert found.lower <= truth <= found.upper


def test_no_room_for_the_vectors() -> None:
    """A budget that holds the probes and not the leading vectors too: the estimate stays, with its bounds."""
    sigma = LOW["rank 40"]
    tight = LanczosProcess.bytes_needed(N, 4, 64)
    one = matrix_free(diagonal(sigma), Lanczos(probes=4, steps=50), tolerance=RTOL, memory_budget=tight)
    assert not of_kind(one.facts, FactKind.LEADING_COUNTED)
    found = one.rank(RTOL)
    assert found.lower <= 40 <= found.upper


def test_is_kept_with_the_record(tmp_path: Path) -> None:
    one = matrix_free(diagonal(LOW["rank three"]), Lanczos(probes=2, steps=20), tolerance=RTOL)
    again = SpectralDensity.load(one.save(tmp_path / "density.json"))
    assert again == one
    assert again.rank(0.5) == one.rank(0.5)
    assert again.rank(RTOL).lower == 3
