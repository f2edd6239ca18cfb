"""The command line as a user meets it: what is written, what is printed, and every refusal in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rankscope.cli import main

MODEL = """
import torch
from torch import nn


class Flaky(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 2, 3)
        self.input_size = (3, 16, 16)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).flatten(1)


def small():
    return Flaky().eval(), lambda image: torch.nn.functional.interpolate(
        torch.tensor(list(image.convert("RGB").resize((16, 16)).tobytes()), dtype=torch.float32)
        .view(16, 16, 3).permute(2, 0, 1)[None] / 255, size=(16, 16))[0]


def training():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout(0.5))
    model.input_size = (3, 16, 16)
    return model
"""


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return f"{path}:small"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def run(*args: str) -> int:
    return main(list(args))


def test_profile_writes_everything(model_file: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    (photos / "broken.png").write_bytes(b"not an image")
    assert (
        run("profile", model_file, "--weights", "random", "--images", str(photos), "--patch", "4", "--out", str(out))
        == 0
    )
    text = capsys.readouterr().out
    assert "first" in text
    assert "broken.png" in text  # named and skipped
    assert {p.name for p in out.iterdir()} == {
        "profile.json", "profile.safetensors", "profile.png", "profile.svg", "report.html",
    }  # fmt: skip
    record = json.loads((out / "profile.json").read_text())
    required = {
        "schema_version",
        "model",
        "tolerance",
        "columns",
        "background",
        "device",
        "dtype",
        "versions",
        "layers",
    }
    assert required <= record.keys()
    assert list(record["skipped"]) == ["broken.png"]
    for layer in record["layers"]:
        assert {"name", "rows", "columns", "rank", "true_cut", "images"} <= layer.keys()
        assert {"min", "median", "max", "lower", "upper"} <= layer["rank"].keys()
        assert layer["images"] == 3
    page = (out / "report.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "<script src" not in page


def test_json_alone_on_standard_output(
    model_file: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = run(
        "profile", model_file, "--weights", "random", "--images", str(photos), "--columns", "sketch:5", "--limit", "1",
        "--json", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["layers"][0]["columns"] == 5


def test_layers(model_file: str, capsys: pytest.CaptureFixture[str]):
    assert run("layers", model_file, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    rows = [("first", True), ("second", True), ("output", True)]  # no module returns what the network does: it flattens
    assert [(r["name"], r["true_cut"]) for r in record["layers"]] == rows


def test_version(capsys: pytest.CaptureFixture[str]):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("rankscope 0.")


REFUSALS = {
    "unknown timm model": (["timm:resnet188"], 2, "resnet18"),
    "unknown kind": (["keras:vgg"], 2, "keras"),
    "unknown layer": (["FILE", "--cut-points", "frist"], 2, "did you mean 'first'"),
    "unknown tolerance": (["FILE", "--tolerance", "papr"], 2, "did you mean 'paper'"),
    "unknown background": (["FILE", "--background", "black"], 2, "black"),
    "unknown columns": (["FILE", "--columns", "some"], 2, "some"),
    "unknown option": (["FILE", "--tolerence", "paper"], 2, "--tolerence"),
    "channels and columns": (["FILE", "--channels", "0", "--columns", "all"], 2, "--columns all and --channels choose"),
    "channels no numbers": (
        ["FILE", "--patch", "4", "--channels", "red"],
        2,
        "--channels 'red' is not a list of channels",
    ),
    "channels outside": (["FILE", "--patch", "4", "--channels", "0,3"], 2, "give distinct 0…2"),
    "patch outside": (["FILE", "--patch", "8", "--patch-offset", "12,0"], 2, "outside the 16×16 image"),
    "sketch over the input": (["FILE", "--columns", "sketch:2000"], 2, "2000"),
    "chunk size": (["FILE", "--chunk-size", "0"], 2, "positive"),
    "memory budget": (["FILE", "--memory-budget", "lots"], 2, "4GB"),
    "budget too small": (["FILE", "--memory-budget", "10"], 1, "raise --memory-budget"),
    "empty folder": (["FILE", "--images", "EMPTY"], 1, "EMPTY"),
    "no such folder": (["FILE", "--images", "ABSENT"], 1, "absent/place"),
    "training mode": (["TRAINING"], None, ""),
    "missing weights": (["FILE", "--weights", "/no/such.safetensors"], 1, "/no/such.safetensors"),
    "weights of another net": (["FILE", "--weights", "OTHER"], 1, "first.weight"),
    "pickled weights": (["FILE", "--weights", "PICKLE"], 1, "safetensors"),
    "folder not writable": (["FILE", "--out", "/proc/rankscope"], 1, "/proc/rankscope"),
    "no factory": (["NOFACTORY"], 2, "smal"),
    "limit": (["FILE", "--limit", "0"], 2, "--limit is 0"),
    "seed below zero": (["FILE", "--seed", "-1"], 2, "--seed is -1"),
    "seed beyond torch's": (
        ["FILE", "--seed", str(2**64)],
        2,
        "--seed is a whole number of 65 bits; it must be at most",
    ),
    "digits that are no number": (["FILE", "--columns", "sketch:²"], 2, "write sketch:K"),
    "chunk size in digits that are no number": (["FILE", "--chunk-size", "²"], 2, "--chunk-size is '²'"),
}


class _Evil:
    def __reduce__(self):
        return (os.system, ("echo pwned",))


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_line(
    case: str, model_file: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    args, expected, words = REFUSALS[case]
    (tmp_path / "EMPTY").mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({"first.weight": _Evil()}, tmp_path / "pickle.pt")
    places = {
        "FILE": model_file,
        "EMPTY": str(tmp_path / "EMPTY"),
        "ABSENT": str(tmp_path / "absent" / "place"),
        "TRAINING": model_file.replace(":small", ":training"),
        "NOFACTORY": model_file.replace(":small", ":smal"),
        "OTHER": str(tmp_path / "other.pt"),
        "PICKLE": str(tmp_path / "pickle.pt"),
    }
    args = [places.get(a, a) for a in args]
    defaults = {"--images": str(photos), "--weights": "random", "--out": str(tmp_path / "run")}
    for option, value in defaults.items():
        if option not in args:
            args += [option, value]
    code = (
        run("profile", *args, "--patch", "4")
        if "--patch" not in args and "--columns" not in args
        else run("profile", *args)
    )
    captured = capfd.readouterr()
    if expected is None:  # loading puts the model into evaluation mode: nothing to refuse
        assert code == 0, captured.err
        return
    assert code == expected, captured.err
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert "Traceback" not in captured.err
    assert "pwned" not in captured.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_absent(model_file: str, photos: Path, capsys: pytest.CaptureFixture[str]):
    assert run("profile", model_file, "--weights", "random", "--images", str(photos), "--device", "cuda") == 1
    assert "cpu" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]):
    assert run("profile", "keras:vgg", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupted_run_continues(
    model_file: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from rankscope.jacobian import batch

    out = tmp_path / "run"
    command = ["profile", model_file, "--weights", "random", "--images", str(photos), "--patch", "4", "--out", str(out)]
    measure = batch.BatchMeasurer.measure
    swept: list[int] = []

    def counted(self, sample):
        if len(swept) == 2:
            raise KeyboardInterrupt
        swept.append(1)
        return measure(self, sample)

    monkeypatch.setattr(batch.BatchMeasurer, "batch_size", _one_at_a_time(batch.BatchMeasurer.batch_size))
    monkeypatch.setattr(batch.BatchMeasurer, "measure", counted)
    assert run(*command) == 130
    error = capsys.readouterr().err
    assert "interrupted: 2 of 3 images are kept" in error
    assert len(list((out / "partial").iterdir())) == 2
    swept.clear()
    assert run(*command) == 0
    assert len(swept) == 2, "one finished image is measured again, and compared; the others are read back"
    assert not (out / "partial").exists()
    assert json.loads((out / "profile.json").read_text())["layers"][0]["images"] == 3


def _one_at_a_time(original):
    def batch_size(self, sample, remaining):
        original(self, sample, remaining)
        return 1

    return batch_size


def test_help_is_quick_and_needs_no_torch():
    heavy = ("torch", "numpy", "timm", "pandas", "matplotlib")
    for command in ([], ["profile"], ["collect"], ["theory", "exponents"]):
        code = (
            f"import sys, rankscope.cli; rankscope.cli.main({[*command, '--help']}); "
            f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "Usage: rankscope" in shown.stdout
        assert shown.stderr.strip() == "[]"


def test_channels_of_a_patch(model_file: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ("profile", model_file, "--weights", "random", "--images", str(photos), "--limit", "1", "--patch", "4")
    for chosen, count in ((None, 48), ("0", 16), ("0, 2", 32)):
        extra = () if chosen is None else ("--channels", chosen)
        assert main([*command, *extra, "--out", str(tmp_path / "run"), "--json"]) == 0
        profile = json.loads(capsys.readouterr().out)
        which = "" if chosen is None else f", channels [{chosen}]"
        words = f"4×4 patch at the centre{which}"
        assert profile["columns"] == {"kind": "patch", "count": count, "counts": [], "words": words}
        # the first layer, a convolution to more channels, keeps every direction it is given
        assert profile["layers"][0]["rank"]["max"] == count
    assert main(["profile", model_file, "--channels", "0"]) == 2
    assert "--channels 0 needs a patch; add --patch 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["profile", "digits", "--shape", "3"], "rankscope profile --help lists its options"),
        (["theory", "chain", "--nosuch"], "rankscope theory chain --help lists its options"),
        (["nosuch"], "rankscope --help lists the commands"),
    ],
)
def test_a_usage_error_names_the_help_of_its_command(
    given: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    assert hint in capsys.readouterr().err
