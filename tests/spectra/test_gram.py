"""The float64 Gram matrix against singular values, and its error bound against exact arithmetic."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

import rankscope as rs
from rankscope.spectra import accumulate_gram, gram_square_error, spectrum_of_gram

U = 2.0**-53


def ill_conditioned(rows: int, columns: int, decades: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    return (u * torch.logspace(0, -decades, min(rows, columns), dtype=torch.float64)) @ vh


@pytest.mark.parametrize("decades", [1, 4, 6])
@pytest.mark.parametrize(("rows", "columns"), [(300, 40), (40, 300), (50, 50)])
@pytest.mark.parametrize("transposed", [False, True])
def test_against_svdvals(rows: int, columns: int, decades: float, transposed: bool) -> None:
    a = ill_conditioned(rows, columns, decades)
    gram = a @ a.T if transposed else a.T @ a
    spectrum = spectrum_of_gram(gram, (rows, columns), error_bound=0.0, summed=columns if transposed else rows)
    exact = torch.linalg.svdvals(a).numpy()
    assert len(spectrum.singular_values) == min(rows, columns)
    gaps = np.abs(spectrum.singular_values**2 - exact**2)
    assert gaps.max() <= spectrum.square_error
    assert spectrum.square_error < 1e-12  # and it says something
    for tolerance in ("paper", "reference", 0.01):
        estimate = spectrum.rank(tolerance)
        assert estimate.lower <= rs.Spectrum.of(a).rank(tolerance).value <= estimate.upper


def test_only_the_rows_that_are_not_zero() -> None:
    a = ill_conditioned(3, 6, 1)
    tall = torch.cat([torch.zeros(5, 6, dtype=torch.float64), a])
    found = spectrum_of_gram(a @ a.T, (8, 6), summed=6)
    assert found.singular_values.shape == (6,)
    np.testing.assert_allclose(found.singular_values, torch.linalg.svdvals(tall).numpy(), atol=1e-8)
    assert spectrum_of_gram(torch.zeros(0, 0, dtype=torch.float64), (4, 3), error_bound=0.0).rank("paper").upper == 0


def test_accumulate() -> None:
    rows = torch.randn(1000, 7)
    out = torch.zeros(7, 7, dtype=torch.float64)
    accumulate_gram(rows[:400], out, block=64)
    accumulate_gram(rows[400:], out, block=1000)
    torch.testing.assert_close(out, rows.double().T @ rows.double(), rtol=1e-14, atol=1e-12)


def test_square_error_by_hand() -> None:
    assert gram_square_error(100, 7, 3.0, 2.0) == pytest.approx(8 * 10 * U * 3.0 + 7 * U * 4.0, abs=0)
    assert gram_square_error(0, 1, 0.0, 0.0) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_square_error_holds_in_exact_arithmetic(size: int) -> None:
    """Eigenvalues of AᵀA with 50 digits, against the float64 path, for badly scaled A."""
    mpmath.mp.dps = 50
    rng = np.random.default_rng(size)
    for trial in range(12):
        a = rng.standard_normal((size + trial % 3, size)) * np.logspace(0, -(trial % 9), size)
        exact_matrix = mpmath.matrix(a.tolist())
        exact = sorted(float(abs(v)) for v in mpmath.eigsy(exact_matrix.T * exact_matrix, eigvals_only=True))[::-1]
        gram = torch.from_numpy(a.T @ a)
        found = spectrum_of_gram(gram, a.shape)
        assert np.abs(found.singular_values**2 - np.array(exact)).max() <= found.square_error


def test_square_error_moves_the_bounds() -> None:
    """A rank that the Gram matrix cannot see is not certified: σ₂ = 1e-9·σ₁ lies under its rounding."""
    a = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    spectrum = spectrum_of_gram(a.T @ a, (2, 2), error_bound=0.0)
    estimate = spectrum.rank(1e-10)
    assert estimate.lower == 1
    assert estimate.upper == 2
    assert math.isfinite(estimate.margin)
