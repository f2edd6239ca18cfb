"""One set of checks: what passes, and the one line that everything else gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankscope._base.checks import (
    budget_of,
    choice_of,
    count_of,
    dtype_of,
    names_of,
    number_of,
    path_of,
    seed_of,
    shape_of,
)
from rankscope._base.errors import UsageError

CPU = torch.device("cpu")
NOT_COUNTS = [0, -1, True, np.True_, torch.tensor(True), 2.5, float("nan"), float("inf"), "3", None, [3], 3 + 0j]


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), torch.tensor(3), np.array(3)])
def test_whole_numbers_of_every_kind_are_counts(value: Any) -> None:
    assert count_of(value, "limit") == 3
    assert type(count_of(value, "limit")) is int


@pytest.mark.parametrize("value", NOT_COUNTS, ids=repr)
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(UsageError, match=r"limit is .*; it must be a whole number of at least 1"):
        count_of(value, "limit")


def test_bounds_of_a_count() -> None:
    assert count_of(0, "seed", least=0) == 0
    with pytest.raises(UsageError, match="seed is -1; it must be a whole number of at least 0"):
        count_of(-1, "seed", least=0)
    with pytest.raises(UsageError, match="samples is 2,000; it must be at most 1,000"):
        count_of(2000, "samples", most=1000)
    assert seed_of(2**63 - 1) == 2**63 - 1
    with pytest.raises(UsageError, match="seed is a whole number of 64 bits; it must be at most 9,223,372,036,854"):
        seed_of(2**63)
    with pytest.raises(UsageError, match="samples is a whole number of 20001 bits; it must be at most"):
        count_of(2**20000, "samples")  # more digits than Python turns into text


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), torch.tensor(2.0), np.array(2)])
def test_numbers(value: Any) -> None:
    assert number_of(value, "noise", above=0) == 2.0


@pytest.mark.parametrize("value", [0, -1, True, "2", None, float("nan"), float("inf"), [2.0], torch.ones(2), 1j])
def test_what_is_no_positive_number(value: Any) -> None:
    with pytest.raises(UsageError, match=r"noise is .*; it must be a finite number above 0"):
        number_of(value, "noise", above=0)


def test_bounds_of_a_number() -> None:
    with pytest.raises(UsageError, match=r"keep is 1.5; it must be a finite number above 0 and of at most 1"):
        number_of(1.5, "keep", above=0, most=1)
    with pytest.raises(UsageError, match=r"eta is -1; it must be a finite number of at least 0"):
        number_of(-1, "eta", least=0)
    with pytest.raises(UsageError, match=r"eta is a whole number of 1329 bits; it must be a finite number above 0"):
        number_of(10**400, "eta", above=0)


@pytest.mark.parametrize("value", [None, 3, b"runs", "a\0b", ["runs"]], ids=repr)
def test_what_is_no_path(value: Any) -> None:
    assert path_of("runs", "out") == path_of(Path("runs"), "out") == Path("runs")
    with pytest.raises(UsageError, match=r"out is .*; give the path of a file or folder as text or Path"):
        path_of(value, "out")


def test_choices() -> None:
    assert choice_of("zero", "background", ["image", "zero"]) == "zero"
    with pytest.raises(UsageError, match="unknown background 'zro'; did you mean 'zero'"):
        choice_of("zro", "background", ["image", "zero"])
    with pytest.raises(UsageError, match="background is 3; give one of 'image', 'zero'"):
        choice_of(3, "background", ["image", "zero"])


@pytest.mark.parametrize("value", ["float32", torch.float32, "torch.float32"])
def test_dtypes(value: Any) -> None:
    assert dtype_of(value) == torch.float32


@pytest.mark.parametrize("value", ["float16", torch.bfloat16, 32, None, "x"])
def test_what_is_no_dtype(value: Any) -> None:
    with pytest.raises(UsageError, match=r"dtype .* cannot be used to measure; give 'float32' or 'float64'"):
        dtype_of(value)


@pytest.mark.parametrize("value", [0, -5, True, "lots", "0GB", "", float("nan"), float("inf"), [1]])
def test_what_is_no_budget(value: Any) -> None:
    with pytest.raises(UsageError, match="memory_budget"):
        budget_of(value, CPU)


def test_default_budget_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Free)
    assert budget_of(None, CPU) == 500
    assert budget_of(None, CPU, share=0.8, most=None) == 800
    assert budget_of(None, CPU, most=100) == 100


def test_shapes_and_names() -> None:
    assert shape_of(5, "input_shape") == (5,)
    with pytest.raises(UsageError, match=r"input_shape is \(3, 0\); give the sizes of one sample"):
        shape_of((3, 0), "input_shape")
    assert names_of(None, "shared") == ()
    with pytest.raises(UsageError, match=r'shared is \[3\]; give names, as shared=\("mask",\)'):
        names_of([3], "shared")
