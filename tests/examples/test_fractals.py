"""Training on formula-driven images, measuring and drawing, as the guide says it, on four classes of small images."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    path = ROOT / "examples/fractals" / script
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")


def test_train_measure_and_draw(tmp_path, monkeypatch, capsys):
    size = ("--classes", 4, "--size", 32)
    weights, results = tmp_path / "weights", tmp_path / "results"
    images = ("--data-seed", 5, "--perturbation", 0.02)
    schedule = ("--steps", 3, "--batch", 8, "--test-per-class", 2, "--float32", "--log-every", 1)
    run(monkeypatch, "train.py", "--model", "resnet18", *size, *images, *schedule, "--device", "cpu", "--out", weights)
    said = capsys.readouterr().out
    record = json.loads(said.strip().splitlines()[-1])
    assert record["steps"] == 3
    assert record["images_seen"] == 24
    assert record["test_images"] == 8
    assert 0 <= record["test_accuracy"] <= 1
    assert "step     3" in said

    file = weights / "resnet18.safetensors"
    measured = ("--images", 1, "--per-class", 3, "--maps", 12, "--device", "cpu")
    run(monkeypatch, "measure.py", "--weights", file, *measured, "--out", results)
    out = results / "resnet18"
    ranks = pd.read_csv(out / "ranks.csv")
    assert set(map(tuple, ranks[["weights", "tolerance"]].drop_duplicates().to_numpy())) == {
        (w, t) for w in ("trained", "untrained") for t in ("paper", "reference")
    }
    assert (ranks.groupby(["weights", "tolerance"]).size() == 11).all()  # the paper's eleven layers of ResNet-18
    assert (ranks["lower"] <= ranks["min"]).all()
    assert (ranks["max"] <= ranks["upper"]).all()
    assert len(pd.read_csv(out / "features.csv")) == 11
    maps = pd.read_csv(out / "maps.csv")
    assert (maps.groupby(["weights", "over"]).size() == 11).all()
    assert (maps["samples"] == 12).all()
    assert (maps["width"] > 512).any()  # not pooled
    assert len(pd.read_csv(out / "accuracy_curve.csv")) == 512
    assert len(pd.read_csv(out / "deficit-all.csv")) == 4
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_images"] == 12
    # measured on images of the kind that it was trained on, as the file of weights says
    assert summary["training"]["data"] == record["data"]
    assert (record["data"]["seed"], record["data"]["perturbation"]) == (5, 0.02)
    # three images a class: the accuracy is a multiple of 1/12
    assert summary["test_accuracy"] * 12 == pytest.approx(round(summary["test_accuracy"] * 12))

    run(monkeypatch, "figures.py", "--results", results, "--out", tmp_path / "images")
    assert {p.name for p in (tmp_path / "images").iterdir()} == {
        f"fractals-{name}.png" for name in ("ranks", "features", "maps", "classification", "deficit")
    }


def test_results_that_are_missing_are_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"holds no results; run measure.py first"):
        run(monkeypatch, "figures.py", "--results", tmp_path)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("measure.py", ("--weights", "missing.safetensors"), "missing.safetensors is not what train.py writes"),
        ("train.py", ("--classes", 0), r"error: FractalSpec\(classes=0\) is out of range"),
        ("train.py", ("--device", "gpu"), "error: device 'gpu' is unknown"),
    ],
)
def test_a_users_error_is_one_line(script, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, script, *arguments)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ("--batch", 1), "--batch is 1; BatchNorm needs two images"),
        ("train.py", ("--model", "resmlp_24_224", "--half", 0.6), "takes images of one size only"),
        ("train.py", ("--log-every", 0), "--log-every is 0; give at least 1"),
        ("measure.py", ("--weights", "x", "--images", 0), "--images is 0; give at least 1"),
    ],
)
def test_options_out_of_range_are_usage_errors(script, arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2") as stopped:
        run(monkeypatch, script, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
