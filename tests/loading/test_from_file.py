"""Models from a user's own Python file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from rankscope._base.errors import ModelError, UsageError
from rankscope._base.facts import FactKind, of_kind
from rankscope.loading import load_images, load_model

GOOD = """
import torch
from torch import nn
from neighbour import WIDTH

def plain():
    return nn.Linear(WIDTH, 2)

def sized(num_classes=2):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))
    model.input_size = (3, 4, 4)
    return model

def with_transform():
    from torchvision.transforms import v2
    steps = [v2.Resize((6, 6)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return nn.Flatten(), v2.Compose(steps)

def bad_transform():
    return nn.Flatten(), lambda image: image.no_such_thing

def needs(width):
    return nn.Linear(width, 1)

def wrong():
    return "a model"

def odd_transform():
    return nn.Flatten(), 3

def fails():
    raise RuntimeError("no data")

def spoiled():
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = float("nan")
    return model

value = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text(GOOD)
    return tmp_path / "net.py"


@pytest.fixture(autouse=True)
def _no_neighbour_left() -> None:
    sys.modules.pop("neighbour", None)


def test_plain_module(file: Path) -> None:
    before = list(sys.path)
    loaded = load_model(f"{file}:plain")
    assert sys.path == before
    assert loaded.source == "file"
    assert loaded.weights == "as net.py:plain returns them"
    assert loaded.preprocessing is None
    assert not loaded.model.training
    assert of_kind(loaded.facts, FactKind.TRAINING_MODE)


def test_the_seed_decides_and_the_global_state_is_left(file: Path) -> None:
    before = torch.random.get_rng_state()
    weights = [load_model(f"{file}:plain", weights="random", seed=s).model.weight for s in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]


def test_input_size_attribute(file: Path) -> None:
    loaded = load_model(f"{file}:sized", num_classes=4)
    assert loaded.input_size == (3, 4, 4)
    images = load_images("photos", preprocessing=loaded.preprocessing)
    assert loaded.model(images.tensor).shape == (2, 4)


def test_transform_sets_the_size(file: Path) -> None:
    loaded = load_model(f"{file}:with_transform")
    assert loaded.input_size == (3, 6, 6)
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.description == "the transform that net.py returns"


def test_weights_from_a_file(file: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 5), "bias": torch.zeros(2)}, tmp_path / "w.pt")
    loaded = load_model(f"{file}:plain", weights=tmp_path / "w.pt")
    assert loaded.model.weight.sum() == 10  # type: ignore[operator,union-attr]


FAULTS = [
    ("plan", r"net\.py has no 'plan'; did you mean 'plain'"),
    ("value", r"net\.py:value is an int; it must be a function"),
    ("needs", r"net\.py:needs must be callable without arguments: missing a required argument: 'width'"),
    ("wrong", r"net\.py:wrong returned a str; return a torch\.nn\.Module or \(module, transform\)"),
    ("odd_transform", r"returned an int as its transform; give a callable"),
    ("bad_transform", r"the transform of .* fails on a 320×240 RGB picture .*no_such_thing"),
    ("fails", r"calling fails in .*net\.py, line 32: RuntimeError: no data"),
    ("spoiled", r"holds NaN or infinite values in 'weight' \(1 of 4\)"),
]


@pytest.mark.parametrize(("factory", "message"), FAULTS)
def test_faults_name_file_and_line(file: Path, factory: str, message: str) -> None:
    with pytest.raises((ModelError, UsageError), match=message):
        load_model(f"{file}:{factory}")


def test_class_count_without_a_parameter(file: Path) -> None:
    with pytest.raises(UsageError, match=r"num_classes=3 was given, but net\.py:plain has no such parameter"):
        load_model(f"{file}:plain", num_classes=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport no_such_package\n", r"importing .*net\.py, line 2: ModuleNotFoundError"),
        ("x = 1\n\ndef f(:\n", r"importing .*net\.py, line 3: SyntaxError"),
        ("x = 1 / 0\n", r"importing .*net\.py, line 1: ZeroDivisionError"),
        ("x = 1\n", r"net\.py has no 'f'; it defines no function"),
    ],
)
def test_files_that_do_not_import(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "net.py").write_text(text)
    with pytest.raises((ModelError, UsageError), match=message):
        load_model(f"{tmp_path / 'net.py'}:f")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.py' does not exist"):
        load_model(f"{tmp_path / 'none.py'}:f")
