"""``rankscope full``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rankscope.cli import main


def test_the_full_rank_of_the_digits_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    command = ["full", "digits", "--limit", "1", "--cut-points", "pool,fc", "--out", str(out), "--device", "cpu"]
    assert main([*command, "--method", "lanczos", "--probes", "2", "--steps", "5"]) == 0
    text = capsys.readouterr().out
    assert "rank of the full Jacobian, 1 image, tolerance: paper" in text
    assert sorted(f.name for f in out.iterdir()) == ["full.csv", "full.json", "full.png", "full.svg"]
    rows = {row["layer"]: row for row in csv.DictReader((out / "full.csv").open())}
    assert rows["pool"]["method"] == "Lanczos"
    assert main([*command, "--method", "exact", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    for row in record["ranks"]:
        assert int(rows[row["layer"]]["lower"]) <= row["upper"]
        assert row["lower"] <= int(rows[row["layer"]]["upper"])
        assert row["method"] == "exact"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lanczos", "--probes", "0"], "--probes is 0; it must be a whole number of at least 1"),
        (["--method", "lanczos", "--steps", "0"], "--steps is 0; it must be a whole number of at least 1"),
        (["--method", "lanczos", "--steps", "many"], "--steps is 'many'; give a whole number of at least 1, or auto"),
        (["--probes", "4"], "belong to --method lanczos; --method is auto"),
        (["--method", "svd"], "--method"),
        (["--memory-budget", "little"], "--memory-budget"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["full", "digits", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
