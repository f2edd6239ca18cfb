"""Rectangular Gaussian chains: simulated products in float64, the laws that they contain, and every refusal."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from rankscope import Tolerance, UsageError
from rankscope.spectra import ToleranceLike, as_tolerance
from rankscope.theory import marchenko_pastur_rank, predicted_rank, rectangular_chain_rank


def simulated(columns: int, widths: list[int], tolerance: ToleranceLike, chains: int = 60) -> tuple[float, float]:
    """Mean rank of products multiplied out in float64, and its standard error."""
    rng = np.random.default_rng(1)
    rtol = as_tolerance(tolerance).relative((widths[-1], columns))
    ranks = []
    for _ in range(chains):
        product = np.eye(columns)
        for width in widths:
            product = rng.standard_normal((width, len(product))) @ product / np.sqrt(len(product))
        sigma = np.linalg.svd(product, compute_uv=False)
        ranks.append(int((sigma >= rtol * sigma[0]).sum()))
    return float(np.mean(ranks)), float(np.std(ranks) / np.sqrt(chains))


@pytest.mark.parametrize(
    ("columns", "widths", "tolerance"),
    [
        (64, [1024, 512, 256, 128, 64, 64], "reference"),
        (100, [400, 50, 300, 80, 60], 0.01),
        (30, [20] * 20, "paper"),
        (20, [10] * 30, 1e-4),
        (10, [12] * 20 + [10], "reference"),
        (200, [150, 300, 100, 250] * 4, "reference"),
        (64, [90, 70, 50, 40], 0.1),
        (48, [10] * 10 + [48] * 10, 1e-3),
        (10, [10] * 40, "paper"),
        (60, [90], 0.3),
    ],
)
def test_simulated_chains(columns: int, widths: list[int], tolerance: ToleranceLike):
    mean, error = simulated(columns, widths, tolerance)
    # the law is one of large sizes: at these it states 0.5 up to a depth of the smallest width and 1 up to four times
    # that; three errors of the mean on top
    stated = 0.5 if len(widths) <= min(columns, *widths) else 1.0
    assert rectangular_chain_rank(columns, widths, tolerance) == pytest.approx(mean, abs=stated + 3 * error)
    assert 1 < mean < min(columns, *widths) + 1e-9


@pytest.mark.parametrize("n", [10, 200, 1000])
@pytest.mark.parametrize("depth", [1, 3, 50])
@pytest.mark.parametrize("tolerance", ["paper", "reference", 1e-10])
def test_square_chains_are_the_law_of_square_chains(n: int, depth: int, tolerance: ToleranceLike):
    expected = predicted_rank(n, depth, tolerance, law="tracy-widom").value
    assert rectangular_chain_rank(n, [n] * depth, tolerance) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rows", "columns", "rtol"), [(64, 100, 0.2), (100, 64, 0.2), (300, 200, 0.15), (9, 10, 0.1)])
def test_one_layer_is_marchenko_pastur(rows: int, columns: int, rtol: float):
    # Gauss–Legendre with 200 nodes on a smooth integrand there, a root to 1e-13 here
    expected = marchenko_pastur_rank(rows, columns, rtol)
    assert rectangular_chain_rank(columns, [rows], rtol) == pytest.approx(expected, rel=1e-8)


def test_order_of_layers_does_not_matter():
    ranks = [rectangular_chain_rank(64, w, 0.02) for w in ([40, 100, 64], [100, 64, 40], [64, 40, 100])]
    assert ranks == pytest.approx([ranks[0]] * 3, rel=1e-12)


def test_a_very_wide_layer_is_an_isometry():
    narrow = [768, 512, 512]
    for place in range(4):
        widths = [*narrow[:place], 10**12, *narrow[place:]]
        assert rectangular_chain_rank(768, widths, 0.01) == pytest.approx(
            rectangular_chain_rank(768, narrow, 0.01), abs=1e-4
        )


def test_rank_never_exceeds_the_narrowest_layer_and_falls_with_depth():
    ranks = [rectangular_chain_rank(64, [128, 32] + [33] * k, 1e-2) for k in range(12)]
    assert ranks[0] == pytest.approx(32, abs=1e-9)
    assert all(a >= b for a, b in pairwise(ranks))
    assert ranks[-1] < 28
    assert rectangular_chain_rank(64, [1]) == 1
    assert rectangular_chain_rank(64, [64] * 9, 1.0) == 1
    assert rectangular_chain_rank(64, [64] * 9, 0.0) == 64


def test_twenty_four_layers_of_a_real_network():
    widths = [802_816] * 6 + [200_704] * 6 + [100_352] * 6 + [512] * 5 + [1000]
    ranks = [rectangular_chain_rank(768, widths[:k], "reference") for k in range(1, 25)]
    assert ranks[17] == 768
    assert ranks[18] == pytest.approx(512, abs=1)
    assert ranks[-1] < 460


@pytest.mark.parametrize(
    ("columns", "widths", "tolerance", "message"),
    [
        (0, [4], "paper", "columns is 0; it must be a whole number of at least 1"),
        (4, [4, 0], "paper", "width 2 .counted from 1. is 0"),
        (4, [4.5], "paper", "width 1 .counted from 1. is 4.5"),
        (4, [], "paper", "widths is empty; a chain needs at least one layer"),
        (4, 4, "paper", "widths is a int; give the width of every layer as a list"),
        (4, [4], Tolerance(atol=0.1), "has an absolute part"),
        (4, [4], "papr", "did you mean 'paper'"),
    ],
)
def test_refusals(columns: int, widths: list[int], tolerance: ToleranceLike, message: str):
    with pytest.raises(UsageError, match=message):
        rectangular_chain_rank(columns, widths, tolerance)
