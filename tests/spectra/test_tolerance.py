"""Every convention's threshold, to the digit, and what a wrong tolerance is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import rankscope as rs
from rankscope.spectra import EPS32, as_tolerance

# (tolerance, rows, columns, dtype) → τ/σ₁. 768 columns: the table of the project's conventions.
THRESHOLDS = [
    (rs.Tolerance.paper(), 802_816, 768, torch.float32, 9.155e-5),
    (rs.Tolerance.paper(), 100, 768, torch.float32, 100 * 2.0**-23),
    (rs.Tolerance.paper(), 5000, 768, torch.float64, 9.155e-5),  # eps32 whatever the dtype computed in
    (rs.Tolerance.reference(), 802_816, 768, torch.float32, 9.568e-3),
    (rs.Tolerance.reference(), 10, 768, torch.float64, 9.568e-3),
    (rs.Tolerance.torch(), 802_816, 768, torch.float32, 0.0957),
    (rs.Tolerance.torch(), 10, 768, torch.float64, 768 * 2.0**-52),
    (rs.Tolerance(rtol=0.25), 7, 5, torch.float32, 0.25),
    (rs.Tolerance(atol=0.3), 7, 5, torch.float32, 0.3),
    (rs.Tolerance(rtol=0.25, atol=0.3), 7, 5, torch.float32, 0.3),
    (rs.Tolerance(rtol=0.35, atol=0.3), 7, 5, torch.float32, 0.35),
]


@pytest.mark.parametrize(("tolerance", "rows", "columns", "dtype", "expected"), THRESHOLDS)
def test_threshold(tolerance: rs.Tolerance, rows: int, columns: int, dtype: torch.dtype, expected: float) -> None:
    assert tolerance.threshold((rows, columns), 1.0, dtype) == pytest.approx(expected, rel=4e-4)


def test_thresholds_exactly() -> None:
    assert EPS32 == float(torch.finfo(torch.float32).eps) == 2.0**-23
    assert rs.Tolerance.paper().threshold((9999, 768), 2.0) == 2 * 768 * 2.0**-23
    assert rs.Tolerance.reference().threshold((9999, 768), 3.0) == 3 * math.sqrt(768 * 2.0**-23)
    assert rs.Tolerance.torch().threshold((9999, 768), 1.0) == 9999 * 2.0**-23


@pytest.mark.parametrize("name", ["paper", "reference", "torch"])
def test_names(name: str) -> None:
    tolerance = as_tolerance(name)
    assert tolerance == getattr(rs.Tolerance, name)()
    assert tolerance.name == str(tolerance) == name
    assert as_tolerance(tolerance.to_dict()) == tolerance
    assert rs.Spectrum.of(np.eye(3)).rank(name).tolerance == name
    assert rs.Spectrum.of(np.eye(3)).rank(name).value == 3


def test_constant_names_its_values() -> None:
    assert rs.Tolerance(rtol=1e-3, atol=2e-5).name == "constant (rtol=0.001, atol=2e-05)"
    assert as_tolerance("1e-3") == as_tolerance(0.001) == rs.Tolerance(rtol=1e-3)
    tolerance = rs.Tolerance(rtol=1e-3, atol=2e-5)
    assert as_tolerance(tolerance.to_dict()) == tolerance
    assert rs.Tolerance(atol=0.0).threshold((3, 3), 1.0) == 0


# σ exactly at τ: kept where the convention says σ ≥ τ, left out where it says σ > τ
STRICT = [
    (rs.Tolerance.paper(), 2 * 2.0**-23, True),
    (rs.Tolerance.torch(), 2 * 2.0**-52, False),
    (rs.Tolerance(rtol=0.5), 0.5, True),
    (rs.Tolerance(atol=0.5), 0.5, True),
    (rs.Tolerance.reference(), math.sqrt(2.0**-23 * 2), False),
]


@pytest.mark.parametrize(("tolerance", "at", "kept"), STRICT)
def test_at_the_threshold(tolerance: rs.Tolerance, at: float, kept: bool) -> None:
    estimate = rs.Spectrum(np.array([1.0, at]), (2, 2)).rank(tolerance)
    assert estimate.threshold == at
    assert estimate.value == 1 + kept
    assert estimate.margin == 0
    assert (estimate.lower, estimate.upper) == (1 + kept, 2)
    for moved, value in ((np.nextafter(at, 1), 2), (np.nextafter(at, 0), 1)):
        assert rs.Spectrum(np.array([1.0, moved]), (2, 2)).rank(tolerance).value == value


@pytest.mark.parametrize("value", ["papr", "Paper", "refrence"])
def test_unknown_name_with_the_nearest(value: str) -> None:
    near = "reference" if value == "refrence" else "paper"
    with pytest.raises(rs.UsageError, match=rf"unknown tolerance '{value}' \(did you mean '{near}'"):
        as_tolerance(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs rtol=, atol=, or both"),
        ({"rtol": -1.0}, "rtol is -1.0; it must be a finite number of at least 0"),
        ({"atol": math.nan}, "atol is nan"),
        ({"rtol": math.inf}, "rtol is inf"),
        ({"rule": "paper", "rtol": 1e-3}, "sets its own threshold"),
        ({"rule": "ppaer"}, "unknown tolerance 'ppaer'; did you mean 'paper'"),
    ],
)
def test_invalid(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        rs.Tolerance(**arguments)


def test_negative_number_in_a_text() -> None:
    with pytest.raises(rs.UsageError, match=r"rtol is -0\.5"):
        as_tolerance("-0.5")


@pytest.mark.parametrize(
    "value", [None, True, [0.1], 1j, b"paper", 10**400, torch.ones(2)], ids=lambda v: type(v).__name__
)
def test_what_is_no_tolerance(value: Any) -> None:
    with pytest.raises(rs.UsageError, match=r"^tolerance is "):
        as_tolerance(value)


def test_a_number_of_any_type_is_kept_as_a_plain_one() -> None:
    for value in (np.float32(0.5), torch.tensor(0.5), {"rtol": 0.5}, {"rtol": 0.5, "atol": None, "rule": "constant"}):
        found = as_tolerance(value)
        assert found == rs.Tolerance(rtol=0.5)
        assert type(found.rtol) is float
    with pytest.raises(rs.UsageError, match="needs rtol=, atol=, or both"):
        as_tolerance({})


def test_a_matrix_whose_numbers_are_not_there() -> None:
    held = torch.eye(2)
    for matrix, reason in (
        (held.to("meta"), "meta device"),
        (held.to_sparse(), "sparse"),
        (np.ma.masked_array(np.eye(2), mask=np.eye(2) > 0), "2 entries of this masked array are hidden"),
        (torch.nested.nested_tensor([held[0], held[1]]), "nested tensor"),
    ):
        with pytest.raises(rs.DataError, match=reason):
            rs.Spectrum.of(matrix)
        with pytest.raises(rs.DataError, match=reason):
            rs.theory.chain_singular_values([matrix])
        with pytest.raises(rs.DataError, match=reason):
            rs.theory.stability_radius(held, direction=matrix)
        with pytest.raises(rs.DataError, match=reason):
            rs.feature_rank(matrix)
    half = torch.tensor([[1.5, 0.25], [0.0, 2.0]])  # numbers that bfloat16 holds exactly
    exact = np.log(np.linalg.svd(half.double().numpy(), compute_uv=False))
    found = rs.theory.chain_singular_values([half.bfloat16()]).log_singular_values
    np.testing.assert_allclose(found, exact, atol=4 * 2**-52)
