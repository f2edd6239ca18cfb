"""Every example runs as its reader would run it, at small size, and leaves the files that it names."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["stem.2", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "flatten", "fc"]
FILES = {
    "profile": {"profile.png", "profile.csv"},
    "features": {"features.png", "features.csv", "features.json"},
    "classification": {"classification.png", "classification.csv", "classification.json", "head.pt"},
    "deficit": {"deficit.png", "deficit-8.png", "deficit.csv", "deficit-path.csv", "deficit.json"},
    "probe": {"probe.png", "probe.csv", "probe.json"},
    "theory": {"theory.png", "theory.csv", "exponents.csv", "theory.json"},
    "training": {"monitor.png", "watch.png", "compare.png", "training.csv", "training.json"},
}


@pytest.fixture(params=sorted(FILES))
def example(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[str, Path, str]:
    """Name, folder and output of a finished example; in this process, since importing takes longer than running."""
    script, out = ROOT / "examples" / request.param / "run.py", tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--small", "--out", str(out)])
    runpy.run_path(str(script), run_name="__main__")
    return request.param, out, capsys.readouterr().out


def test_an_example_writes_what_it_names(example: tuple[str, Path, str]) -> None:
    name, out, printed = example
    written = {p.name for p in out.iterdir() if p.is_file()}
    assert written == FILES[name]
    assert {p.name for p in out.parent.iterdir()} == {"out"}  # nothing lands beside it
    said = re.search(r"^wrote (.*) in ", printed, re.MULTILINE)
    assert said is not None
    assert set(re.split(r", | and ", said[1])) == written
    for picture in out.glob("*.png"):
        head = picture.read_bytes()[:8]
        assert head == b"\x89PNG\r\n\x1a\n"
    CHECKS[name](out)


def check_profile(out: Path) -> None:
    table = pd.read_csv(out / "profile.csv")
    groups = dict(list(table.groupby(["network", "tolerance"])))
    assert set(groups) == {(n, t) for n in ("trained", "untrained") for t in ("paper", "reference")}
    for group in groups.values():
        assert list(group["layer"]) == LAYERS
        assert set(group["columns"]) == {64}
        # the stem is injective on the 64 pixels; ten logits come last
        assert list(group["function_rank"].iloc[[0, -1]]) == [64, 10]
    import rankscope as rs

    assert len(rs.JacobianProfile.load(out / "trained").images) == 2


def check_features(out: Path) -> None:
    table = pd.read_csv(out / "features.csv")
    assert list(table["measured"]) == ["data"] * 9 + ["local"] * 9
    assert list(table["name"]) == LAYERS * 2
    data, local = table[:9], table[9:]
    assert set(data["samples"]) == {100}
    assert set(local["samples"]) == {200}
    assert (table["pca_dimension"] <= table[["width", "samples"]].min(axis=1)).all()
    assert json.loads((out / "features.json").read_text())["local"]["provenance"]["noise"] == 1e-3


def check_classification(out: Path) -> None:
    record = json.loads((out / "classification.json").read_text())
    assert set(record) == {"uncentred", "centred"}
    found = record["uncentred"]
    # the first crossing of 95% on the curve, found again by hand
    needed = 0.95 * found["full_accuracy"]
    assert found["dimension"] == next(k for k, a in enumerate(found["curve"], 1) if a >= needed)
    assert found["samples"] == 150
    import torch

    assert {tuple(v.shape) for v in torch.load(out / "head.pt").values()} >= {(found["dimension"], 64)}
    assert len(pd.read_csv(out / "classification.csv")) == len(found["curve"]) + len(record["centred"]["curve"])


def check_deficit(out: Path) -> None:
    table = pd.read_csv(out / "deficit.csv")
    assert len(table) == 10
    record = json.loads((out / "deficit.json").read_text())
    assert record["samples"] == 300
    assert record["held_out_samples"] == 450
    path = pd.read_csv(out / "deficit-path.csv")
    assert (path.groupby("class").size() == 12).all()
    # exact solutions at a falling penalty explain more and more of the fitted samples
    for _, one in path.groupby("class"):
        assert one["r2"].is_monotonic_increasing


def check_probe(out: Path) -> None:
    table = pd.read_csv(out / "probe.csv").set_index("component")
    assert list(table.index) == ["fc", "relu", "maxpool", "batchnorm_eval", "layernorm"]
    # 128 dimensions in: pooling keeps a quarter, LayerNorm loses one exactly
    assert table.loc["maxpool", "rank_after"] == 32
    assert table.loc["layernorm", "expected_exact"] == 127
    assert len(json.loads((out / "probe.json").read_text())["components"]) == 5


def check_theory(out: Path) -> None:
    table = pd.read_csv(out / "theory.csv")
    assert list(table["network"].value_counts()) == [7, 7]
    exponents = pd.read_csv(out / "exponents.csv")
    assert (exponents.groupby(["network", "image"]).size() == 64).all()
    record = json.loads((out / "theory.json").read_text())
    assert set(record) == {"accuracy", "ranks", "exponents"}


def check_training(out: Path) -> None:
    table = pd.read_csv(out / "training.csv")
    assert table["run"].nunique() == 4
    for _, run in table.groupby("run"):
        assert run["step"].unique().tolist() == [0, 4]
        assert run["layer"].unique().tolist() == LAYERS
        assert set(run["samples"]) == {150}
    record = json.loads((out / "training.json").read_text())
    assert set(record["accuracy"]) == set(table["run"])
    low = {run for run, value in zip(table["run"], table["value"], strict=True) if value < 5}
    assert {run for run, rung in record["alarms"].items() if rung} <= low


CHECKS = {
    "profile": check_profile,
    "features": check_features,
    "classification": check_classification,
    "deficit": check_deficit,
    "probe": check_probe,
    "theory": check_theory,
    "training": check_training,
}


def test_every_example_with_a_guide_is_run_here() -> None:
    guides = [p.read_text(encoding="utf-8") for p in (ROOT / "docs/guides").glob("*.md")]
    guided = {name for text in guides for name in re.findall(r"examples/(\w+)/run\.py", text)}
    assert guided == set(FILES)


@pytest.mark.parametrize("picture", sorted((ROOT / "docs/images").glob("*.png")), ids=lambda p: p.name)
def test_pictures_stay_small(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
