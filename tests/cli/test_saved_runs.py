"""``rankscope compare FOLDER …``: each folder is read as what the command or the trainer wrote into it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from processes import with_network
from torch import nn

import rankscope as rs
from rankscope.cli import main
from rankscope.cli.saved_runs import saved_run
from rankscope.monitor.history import Entry, History, Moment

NETWORK = """
def seeded(seed):
    torch.manual_seed(seed)
    return Net(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 2)).eval()

def net0():
    return seeded(0)

def net1():
    return seeded(1)
"""


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 2)).state_dict()


def command(*given: object) -> int:
    return main([*map(str, given)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the commands leave them, two of a kind."""
    place = tmp_path_factory.mktemp("runs")
    with_network(place, NETWORK)
    small = ("--weights", "random", "--data", place / "data.npz")
    for seed in (0, 1):
        network = f"{place / 'net.py'}:net{seed}"
        assert command("features", network, *small, "--out", place / f"features{seed}") == 0
        assert command("collect", network, *small, "--out", place / f"collect{seed}") == 0
        (place / f"checkpoints{seed}").mkdir()
        for step in (3, 5):
            torch.save(weights(10 * seed + step), place / f"checkpoints{seed}" / f"step-{step}.pt")
        given = ("watch", place / f"checkpoints{seed}", "--model", network, "--data", place / "data.npz")
        assert command(*given, "--out", place / f"watch{seed}") == 0
        (place / f"trainer{seed}" / "checkpoint-10").mkdir(parents=True)
        history = History(place / f"trainer{seed}" / "rank_history.jsonl")
        for step in (0, 10):
            history.add(Moment(step, (Entry("a", "rankme", 2.5 + seed + step, 9),)))
        history.close()
        shutil.copy(history.path, place / f"trainer{seed}" / "checkpoint-10")
        net = nn.Sequential(nn.Linear(4, 3 - seed))
        rs.jacobian_rank(net, torch.ones(2, 4), cut_points=["0"], progress=False).save(place / f"profile{seed}")
    return place


def compared(runs: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> list[list[float]]:
    capsys.readouterr()
    assert command("compare", runs / f"{kind}0", runs / f"{kind}1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    return [layer["values"] for layer in found["layers"]]


def same(found: Any, expected: Any) -> None:
    """Equal to rounding: a run on a GPU decomposes there, what was kept on the CPU, and a table has 17 digits."""
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["features", "collect"])
def test_features_are_those_of_the_table_beside(runs: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [pd.read_csv(runs / f"{kind}{seed}" / "features.csv") for seed in (0, 1)]
    columns = [table["effective_rank"].tolist() for table in tables]
    assert columns[0] != columns[1]
    same(np.array(compared(runs, kind, capsys)).T, columns)


def test_features_against_saved_profiles(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of ``FeatureProfile.save`` beside a folder of the same features: no difference."""
    kept = rs.feature_rank(rs.Collection.load(runs / "collect0"))
    kept.save(runs / "kept.json")
    capsys.readouterr()
    for other in (runs / "collect0", runs / "collect0" / "features.json"):
        assert command("compare", runs / "kept.json", other, "--metric", "participation_ratio", "--json") == 0
        layers = json.loads(capsys.readouterr().out)["layers"]
        same([layer["values"] for layer in layers], [[layer.participation_ratio] * 2 for layer in kept])


def test_a_watched_run_is_compared_at_its_last_step(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = []
    for seed in (0, 1):
        table = pd.read_csv(runs / f"watch{seed}" / "watch.csv")
        last = table[(table["step"] == 5) & (table["metric"] == table["metric"][0])]
        columns.append(last["value"].tolist())
    same(np.array(compared(runs, "watch", capsys)).T, columns)


@pytest.mark.parametrize("kind", ["features", "watch"])
def test_other_data_are_a_caution(runs: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    shutil.copytree(runs / f"{kind}0", folder)
    same = str(rs.compare([saved_run(folder), saved_run(runs / f"{kind}1")]))
    assert "differ in" not in same
    found = json.loads((folder / f"{kind}.json").read_text())
    del found["checksum"]
    where = found["provenance"] if kind == "watch" else found
    assert where["data"] == str(runs / "data.npz")
    where["data"] = "digits"
    (folder / f"{kind}.json").write_text(json.dumps(found))
    said = str(rs.compare([saved_run(folder), saved_run(runs / f"{kind}1")]))
    assert "The runs differ in data (" in said
    assert "digits" in said


def test_steps_that_count_other_things_are_a_caution(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "epochs"
    shutil.copytree(runs / "watch0", folder)
    found = json.loads((folder / "watch.json").read_text())
    del found["checksum"]
    (folder / "watch.json").write_text(json.dumps({**found, "unit": "epoch"}))
    said = str(rs.compare([saved_run(folder), saved_run(runs / "watch1")]))
    assert "Caution: The runs differ in what their steps count (run 1: epoch; run 2: step)." in said
    assert "what their steps count" not in str(rs.compare([saved_run(runs / f"watch{seed}") for seed in (0, 1)]))


def test_the_history_of_a_trainer(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(runs, "trainer", capsys) == [[12.5, 13.5]]


def test_a_history_of_another_name_counts_and_another_file_of_lines_does_not(runs: Path, tmp_path: Path) -> None:
    shutil.copy(runs / "trainer0" / "rank_history.jsonl", tmp_path / "mine.jsonl")
    (tmp_path / "trainer_log.jsonl").write_text('{"current_steps": 1, "loss": 2.0}\n')
    assert saved_run(tmp_path)["value"].tolist() == [2.5, 12.5]


def test_profiles_are_read_as_before(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(runs, "profile", capsys) == [[3.0, 2.0]]


def test_a_folder_of_several_results_names_them(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = tmp_path / "both"
    shutil.copytree(runs / "features0", both)
    for path in (runs / "profile0").iterdir():
        shutil.copy(path, both)
    shutil.copy(runs / "trainer0" / "rank_history.jsonl", both / "other.jsonl")
    capsys.readouterr()
    assert command("compare", both, runs / "features1") == 2
    error = capsys.readouterr().err
    assert "holds 3 results (profile.json, features.json, other.jsonl); give the file to compare, such as" in error
    assert command("compare", both / "features.json", runs / "features1") == 0


def test_other_folders_and_files_are_refused_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(text: str, path: Path) -> None:
        capsys.readouterr()
        assert command("compare", path, runs / "features1") in (1, 2)
        error = capsys.readouterr().err
        assert text in error
        assert len(error.splitlines()) == 1

    refused("holds no run to compare; known are profile.json, features.json, watch.json", tmp_path)
    refused("several kinds (FeatureProfile, JacobianProfile)", runs / "profile0")
    kept = json.loads((runs / "features0" / "features.json").read_text())
    path = tmp_path / "features.json"
    for change, text in (
        ({"kind": "theory"}, "kind 'theory'"),
        ({"schema_version": 9}, "schema_version 9; this version reads 1"),
        ({"layers": []}, "it has no layers"),
        ({"layers": [{"name": "0"}]}, "KeyError('samples')"),
        ({"layers": 3}, "is damaged (TypeError"),
    ):
        path.write_text(json.dumps({name: v for name, v in kept.items() if name != "checksum"} | change))
        refused(text, tmp_path)
    path.write_text(json.dumps(kept | {"model": "another"}))
    refused("checksum", tmp_path)
    path.write_text("[1]")
    refused("features.json", tmp_path)
    path.unlink()
    (tmp_path / "rank_history.jsonl").write_text("")
    (tmp_path / "other").mkdir()
    shutil.copy(runs / "trainer0" / "rank_history.jsonl", tmp_path / "other")
    capsys.readouterr()
    assert command("compare", tmp_path, tmp_path / "other") == 2
    assert "a history is empty; compare runs of which at least one step was monitored" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["runs/a", Path("runs/a")])
def test_the_function_says_how_a_path_is_loaded(path: str | Path) -> None:
    with pytest.raises(rs.UsageError, match=r"a run is the path 'runs/a'; load it first \(JacobianProfile\.load"):
        rs.compare([path, path])
