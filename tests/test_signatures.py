"""One word for one thing: an option of public functions has one type and one meaning wherever it stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rankscope as rs
import rankscope.reproduce

# option → its only type, or the two of a function that has a default for it and one that needs it
ONE: dict[str, set[str]] = {
    "batch_size": {"int"},
    "limit": {"int | None"},
    "memory_budget": {"MemoryBudget"},
    "progress": {"bool | Progress | None"},
    "seed": {"int"},
    "device": {"DeviceLike"},
    "scale": {"Scale"},
    "accuracy": {"Accuracy"},
    "inputs": {"Any"},
    "shared": {"str | Sequence[str]"},
    "per_sample": {"str | Sequence[str]"},
    "seeds": {"int | Sequence[int]"},
    "tolerance": {"ToleranceLike"},
    "as_printed": {"str"},
    "differentiate": {"str | None"},
    "processes": {"Processes"},
    "num_workers": {"int"},
    "projection": {"Projection"},
    "samples_used": {"str"},
    "out": {"str | Path", "str | Path | None"},
    "dtype": {"DtypeLike"},
    "cut_points": {"CutPointsLike", "CutPointsLike | None"},
}
# option → its only default, where it has one
DEFAULT: dict[str, Any] = {
    "batch_size": 64,
    "memory_budget": None,
    "progress": None,
    "seed": 0,
    "scale": "full",
    "shared": (),
    "per_sample": (),
    "tolerance": "paper",
    "accuracy": "overall",
    "limit": None,
    "differentiate": None,
    "processes": "all",
    "num_workers": 0,
    "projection": "uncentred",
    "samples_used": "all",
}
GONE = {
    "retain",
    "memory",
    "convention",
    "chunk",
    "n_samples",
    "num_images",
    "max_images",
    "verbose",
    "rng",
    "random_state",
    "workers",
}


def _functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for home in (rs, rs.theory, rs.loading, rs.datasets, rankscope.reproduce):
        for name in home.__all__:
            found = getattr(home, name)
            if inspect.isfunction(found):
                yield f"{home.__name__}.{name}", found


FUNCTIONS = dict(_functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_option_means_the_same_everywhere(name: str) -> None:
    options = inspect.signature(FUNCTIONS[name]).parameters
    assert not GONE & options.keys()
    for option in ONE.keys() & options.keys():
        assert options[option].annotation in ONE[option], (name, option)
    for option in DEFAULT.keys() & options.keys():
        assert options[option].default in (inspect.Parameter.empty, DEFAULT[option]), (name, option)


def test_the_options_are_there() -> None:
    used = {option for function in FUNCTIONS.values() for option in inspect.signature(function).parameters}
    assert ONE.keys() | DEFAULT.keys() <= used
