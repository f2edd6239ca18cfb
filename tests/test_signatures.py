"""One word for one thing: an option of public functions has one type and one meaning wherever it stands."""

from __future__ import annotations

import importlib
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


# functions that loop over nothing that a user may make long, or over what is handed to them piece by piece
QUICK = {
    "compare": "runs that are measured already",
    "layers": "one forward pass",
    "linear_map": "one trace and its checks: two seconds for a ViT-T on one core",
    "standard_components": "makes modules",
    "datasets.fractal_images": "one batch of images",
    "loading.calibrate_batchnorm": "the caller's batches",
    "loading.load_model": "a download, which shows its own",
    "loading.load_tokenizer": "a few small files",
    "loading.load_weights": "one file",
    "loading.read_weights": "one file",
    "loading.read_texts": "strings into token ids",
    "loading.image_files": "names of files",
    "loading.class_folders": "names of folders",
}
LAWS = "closed forms and single matrices"
QUICK |= {
    f"theory.{name}": LAWS
    for name in (
        "composition_bound", "critical_std", "depth_to_rank", "gaussian_exponents", "growth_rate",
        "marchenko_pastur_rank", "predicted_rank", "rectangular_chain_rank", "relu_width", "residual_chain_rank",
        "stability_radius",
    )
}  # fmt: skip
CHECKS = ("check_", "class_order", "ensure_", "is_image", "plain_", "pretrained_", "resolve_", "split_", "unreachable")


def test_every_long_function_takes_progress() -> None:
    named = dict(inspect.getmembers(rs, inspect.isfunction))
    for package in rs._PACKAGES:
        room = importlib.import_module(f"rankscope.{package}")
        named |= {
            f"{package}.{name}": f for name, f in inspect.getmembers(room, inspect.isfunction) if name in room.__all__
        }
    named = {name: f for name, f in named.items() if "." in name or name in rs.__all__}
    without = {name for name, f in named.items() if "progress" not in inspect.signature(f).parameters}
    short = {name for name in without if name.rpartition(".")[2].startswith(CHECKS)}
    assert without - short == set(QUICK)
