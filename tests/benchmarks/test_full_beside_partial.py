"""The benchmark from training to the page, on two classes of small images."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/full_beside_partial.py"
PARTS = ("verdict", "measured", "networks", "ranks", "lemma", "lemma-all", "failures", "depth", "steps", "random")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit, match=r"\d") as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.slow
def test_from_training_to_the_page(tmp_path, monkeypatch, capsys):
    small = ("--networks", "resnet18", "--classes", 2, "--side", 16, "--images", 1, "--patch", 8, "--sketch", 40)
    asked = (*small, "--train-steps", 1, "--batch", 4, "--device", "cpu", "--out", tmp_path)
    assert run(monkeypatch, *asked, "--limit", 3600) == 0
    first = capsys.readouterr().out
    assert "0 partial ranks exceed the full rank" in first
    ranks = pd.read_csv(tmp_path / "ranks.csv")
    assert list(ranks.groupby(["weights", "tolerance", "columns"]).size()) == [11] * 2 * 3 * 3
    assert set(ranks.loc[ranks["columns"] == "full", "possible"]) == {768, 512, 256, 2}
    assert set(ranks.loc[ranks["columns"] == "sketch", "possible"]) == {40, 2}
    # untrained branches are open: every block changes the Jacobian; pooling a map of one pixel does not
    rows = ranks[(ranks["weights"] == "untrained") & (ranks["columns"] == "full") & (ranks["tolerance"] == "paper")]
    assert rows.set_index("layer")["sigma_max"].nunique() == 10
    about = pd.read_csv(tmp_path / "networks.csv").set_index("weights")
    assert about.loc["trained", "images_seen"] == 4
    assert about.loc["trained", "steps"] == 1
    assert about.loc["trained", "test_images"] == 20
    assert 0 <= about.loc["trained", "test_accuracy"] <= 1

    # no time is needed where all is there
    (tmp_path / "ranks.csv").unlink()
    assert run(monkeypatch, *asked, "--limit", 0) == 0
    assert pd.read_csv(tmp_path / "ranks.csv").equals(ranks)
    assert "are left" not in capsys.readouterr().out

    # without measuring, and asked for another network: what is there stays, and what is missing is that network's
    (tmp_path / "ranks.csv").unlink()
    assert run(monkeypatch, *asked, "--collect", "--networks", "resnet50") == 0
    assert pd.read_csv(tmp_path / "ranks.csv").equals(ranks)
    assert "6 measurements are left: the same command without --collect goes on" in capsys.readouterr().out

    docs = tmp_path / "docs"
    docs.mkdir()
    marks = "".join(f"<!-- begin {part} --><!-- end {part} -->\n" for part in PARTS)
    (docs / "full-rank.md").write_text(marks)
    assert run(monkeypatch, "--page", "--out", tmp_path, "--docs", docs) == 0
    page = (docs / "full-rank.md").read_text()
    assert page.count("ResNet-18") > 10
    assert {p.name for p in (docs / "images").iterdir()} == {"full-rank-depth.png", "full-rank-drops.png"}


def test_what_there_is_no_time_for_is_left(tmp_path, monkeypatch, capsys):
    asked = ("--networks", "resnet18", "--classes", 2, "--side", 16, "--images", 1, "--patch", 8, "--sketch", 40)
    assert run(monkeypatch, *asked, "--limit", 0, "--out", tmp_path) == 0
    # three of the untrained network, and three of the one that is not trained yet
    assert "6 measurements are left: the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "ranks.csv").exists()


def test_more_images_than_classes_are_refused(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--images", 5, "--classes", 4, "--out", tmp_path) == 2
    assert "--images is 5; give 1 to 4, one of a class" in capsys.readouterr().err


def test_a_partial_rank_above_the_full_one_is_an_error():
    import full_beside_partial

    same = {"network": "n", "weights": "trained", "tolerance": "paper", "image": 0, "layer": "l"}
    rows = [
        {**same, "columns": "full", "lower": 3, "upper": 7},
        {**same, "columns": "patch", "lower": 7, "upper": 9},
        {**same, "columns": "sketch", "lower": 8, "upper": 9},
    ]
    assert list(full_beside_partial.impossible(pd.DataFrame(rows))["columns"]) == ["sketch"]
