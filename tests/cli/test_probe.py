"""``rankscope probe`` as a user meets it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankscope.cli import main

TINY = ("--input-shape", "4x4x4", "--samples", "20", "--device", "cpu")
OWN = """
import torch
from torch import nn

class Halve(nn.Module):
    def forward(self, x):
        print("noise of the component")
        return x[:, :2]

def sized(size):
    return nn.Identity()

def broken():
    raise RuntimeError("no weights here")

def drop():
    return nn.Dropout(0.5)

ready = nn.Flatten()
number = 3

def tensor():
    return torch.ones(3)

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "asks.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "syntax.py").write_text("def (\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_probe_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "b"
    assert main(["probe", "relu,layernorm", *TINY, "--out", str(out)]) == 0
    text, errors = capsys.readouterr()
    assert errors == ""
    assert "20 samples cannot show more than 19" in text
    assert sorted(p.name for p in out.iterdir()) == ["probe.csv", "probe.json", "probe.png", "probe.svg"]
    record = json.loads((out / "probe.json").read_text())
    rows = list(csv.DictReader((out / "probe.csv").open()))
    assert [r["component"] for r in rows] == ["relu", "layernorm"]
    assert int(rows[1]["rank_after"]) == record["components"][1]["rank_after"]
    with Image.open(out / "probe.png") as image:
        assert 900 <= image.width <= 1100  # 3.35 inches at 300 dots
    assert "LayerNorm" in (out / "probe.svg").read_text()


def test_all_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *TINY, "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["components"]) == 17
    assert record["components"][0]["input_shape"] == [4, 4, 4]
    assert record["components"][0]["samples"] == 20


def test_options_arrive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seed", "5", "--points", "2", "--tolerance", "1e-3", "--front", "orthogonal", "--dtype", "float32"]
    assert main(["probe", "relu", *TINY, *options, "--json", "--out", str(tmp_path)]) == 0
    one = json.loads(capsys.readouterr().out)["components"][0]
    assert (one["seed"], one["points"], one["tolerance"]["rtol"]) == (5, 2, 1e-3)
    assert (one["front"], one["dtype"]) == ("orthogonal", "float32")


def test_small_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "avgpool", "--device", "cpu", "--json", "--out", str(tmp_path)]) == 0
    one = json.loads(capsys.readouterr().out)["components"][0]
    assert (one["input_shape"], one["samples"], one["rank_after"]) == ([32, 4, 4], 312, 128)


def test_remedies_alone_and_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankscope.probes import remedies

    monkeypatch.setitem(remedies.REMEDY_SCALES, "small", (10, 6))
    assert main(["probe", "--remedies", "--out", str(tmp_path / "r")]) == 0
    text = capsys.readouterr().out
    assert "skip, branch/√depth" in text
    assert "component" not in text
    names = ["remedies.csv", "remedies.json", "remedies.png", "remedies.svg"]
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == names
    both = ["probe", "relu", *TINY, "--remedies", "--seed", "2", "--json", "--out", str(tmp_path / "b")]
    assert main(both) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "probe_and_remedies"
    assert record["remedies"]["seeds"] == [2, 3, 4]
    assert len(record["components"]["components"]) == 1
    assert len(list((tmp_path / "b").iterdir())) == 8
    # the scale is that of the remedies where the component has its own samples
    monkeypatch.setitem(remedies.REMEDY_SCALES, "full", (10, 5))
    beside = [
        "--data",
        "digits",
        "--limit",
        "9",
        "--remedies",
        "--scale",
        "full",
        "--json",
        "--out",
        str(tmp_path / "c"),
    ]
    assert main(["probe", "relu", *beside]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["remedies"]["depth"] == 5
    assert main(["probe", "relu", *beside, "--samples", "9"]) == 2
    assert "--samples has no meaning with --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("component", "rank"), [("own_parts:Halve", 32), ("torch.nn:Softplus", 64), ("own_parts:ready", 64)]
)
def test_components_of_ones_own(component: str, rank: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--front", "orthogonal", "--tolerance", "1e-4"]
    assert main(["probe", component, *TINY, *options, "--json", "--out", "out"]) == 0
    one = json.loads(capsys.readouterr().out)["components"][0]
    assert one["rank_after"] == rank
    assert one["component"] == component.partition(":")[2]
    assert one["expected_exact"] is None


def test_training_mode_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, random in (([], False), (["--training"], True)):
        assert main(["probe", "own_parts:drop", *TINY, *extra, "--json", "--out", "out"]) == 0
        kinds = {fact["kind"] for fact in json.loads(capsys.readouterr().out)["components"][0]["facts"]}
        assert ("random in training mode" in kinds) is random


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["layernrom"], 2, "no standard component 'layernrom'; did you mean 'layernorm'"),
        (["torch.nn.ReLU"], 2, "put a colon before the class or factory: torch.nn:ReLU"),
        (["torch.nn:ReL"], 2, "torch.nn has no 'ReL'; did you mean 'ReLU'"),
        (["own_parts.py:Halve"], 2, "is a file; go to its folder and write own_parts:Halve"),
        (["a-b:C"], 2, "is no import path"),
        (["nowhere.at_all:C"], 1, "cannot import 'nowhere.at_all': there is no module 'nowhere'"),
        (["asks:C"], 1, "there is no module 'not_installed_anywhere', which it imports; install it"),
        (["syntax:C"], 1, "cannot import 'syntax': SyntaxError"),
        (["own_parts:sized"], 1, "own_parts:sized() fails: TypeError"),
        (["own_parts:broken"], 1, "RuntimeError: no weights here"),
        (["own_parts:number"], 1, "own_parts:number is a int"),
        (["own_parts:tensor"], 1, "gives a Tensor; a component is a torch.nn.Module"),
        (["own_parts:pair"], 1, "returned a tuple of 2; wrap it"),
        ([" , "], 2, "names nothing"),
        (["relu", "--training"], 2, "--training is for a component of your own"),
        (["relu", "--scale", "smal"], 2, "unknown --scale 'smal'; did you mean 'small'"),
        (["relu", "--input-shape", "4x"], 2, "--input-shape '4x' is not a shape"),
        (["relu", "--input-shape", "0x4x4"], 2, "--input-shape '0x4x4' is not a shape"),
        (["groupnorm", "--input-shape", "3x4x4"], 2, "groupnorm needs channels divisible by 4"),
        (["relu", "--samples", "1"], 2, "samples is 1"),
        (["relu", "--seed", "-2"], 2, "seed is -2"),
        (["relu", "--tolerance", "papr"], 2, "papr"),
        (["relu", "--device", "gpu"], 2, "'gpu' is unknown"),
    ],
)
def test_refusals(args: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [word for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] not in args for word in pair]
    given = [*kept, *args[1:]]
    assert main(["probe", args[0], *given, "--out", "run"]) == code
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (folder / "run" / "probe.json").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["probe", "relu", *TINY, "--out", str(tmp_path / "file")]) == 1
    assert "cannot write into" in capsys.readouterr().err


def test_the_help_names_the_whole_standard_set() -> None:
    """Written out there, since building the set to read its names would cost every command a second."""
    from rankscope.cli.probe import probe_command
    from rankscope.probes import standard_components

    argument = probe_command.__annotations__["component"]
    assert all(name in str(argument) for name in standard_components((4, 2, 2)))


def test_samples_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ReLU keeps at a sample is what of it is positive; at the first sample, which --limit leaves in place."""
    x = np.random.default_rng(0).standard_normal((30, 4, 2, 2))
    np.save("h.npy", x)
    np.savez("h.npz", inputs=x, labels=np.arange(30))
    for given in ("h.npy", "h.npz"):
        assert main(["probe", "relu,maxpool", "--data", given, "--device", "cpu", "--json", "--out", "out"]) == 0
        relu, pool = json.loads(capsys.readouterr().out)["components"]
        assert (relu["rank_after"], pool["rank_after"]) == ((x[0] > 0).sum(), 4)
        assert (relu["front"], relu["samples"], relu["input_shape"]) == ("none", 30, [4, 2, 2])
    assert main(["probe", "own_parts:ready", "--data", "h.npy", "--limit", "5", "--json", "--out", "out"]) == 0
    one = json.loads(capsys.readouterr().out)["components"][0]
    assert (one["samples"], one["rank_after"]) == (5, 16)
    assert main(["probe", "relu", "--data", "digits", "--limit", "9", "--json", "--out", "out"]) == 0
    assert json.loads(capsys.readouterr().out)["components"][0]["input_shape"] == [1, 8, 8]
    given = ["--data", "photos", "--input-shape", "3x4x4"]
    assert main(["probe", "own_parts:ready", *given, "--device", "cpu", "--json", "--out", "out"]) == 0
    assert json.loads(capsys.readouterr().out)["components"][0]["samples"] == 2  # scikit-learn has two photographs


def test_samples_keep_their_precision(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1 and 1 + 1e-9 are one number in float32: their features would have no dimension."""
    np.save("h.npy", np.array([[1.0, 0.0], [1.0 + 1e-9, 0.0], [1.0 - 1e-9, 0.0]]))
    assert main(["probe", "own_parts:ready", "--data", "h.npy", "--device", "cpu", "--json", "--out", "out"]) == 0
    assert json.loads(capsys.readouterr().out)["components"][0]["dimension_before"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "h.npy", "--scale", "small"], "--scale has no meaning with --data"),
        (["--data", "h.npy", "--samples", "9"], "--samples has no meaning with --data"),
        (["--data", "h.npy", "--front", "gaussian"], "--front has no meaning with --data"),
        (["--data", "h.npy", "--input-shape", "4x2x2"], "has its own shape; leave --input-shape out"),
        (["--data", "h.npy", "--limit", "0"], "--limit is 0"),
        (["--data", "h.npy", "--limit", "1"], "--data hold 1"),
        (["--data", "h.npy", "--points", "31"], "--points is 31"),
        (["--data", "photos"], "add --input-shape"),
        (["--data", "photos", "--input-shape", "12"], "give --input-shape as CxHxW"),
        (["--data", "photos", "--input-shape", "4x8x8"], "--input-shape asks for 4"),
        (["--data", "nowhere"], "--data 'nowhere' does not exist"),
        (["--limit", "3"], "--limit has no meaning without samples"),
        (["--remedies", "--points", "2"], "--points has no meaning for the remedies alone"),
        (["--remedies", "--data", "h.npy"], "--data has no meaning for the remedies alone"),
    ],
)
def test_refusals_of_samples(args: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("h.npy", np.random.default_rng(0).standard_normal((30, 4, 2, 2)))
    component = [] if "--remedies" in args else ["relu"]
    assert main(["probe", *component, *args, "--out", "run"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors
    assert not (folder / "run").exists()
