"""``rankscope profile --columns all --method …``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rankscope as rs
from rankscope.cli import main

GIVEN = ["--limit", "1", "--cut-points", "pool,fc", "--device", "cpu", "--columns", "all"]


def test_the_full_rank_of_the_digits_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    command = ["profile", "digits", *GIVEN, "--out", str(out)]
    assert main([*command, "--method", "lanczos", "--probes", "2", "--steps", "5"]) == 0
    text = capsys.readouterr().out
    assert "all input coordinates (K = 64)" in text
    assert "std. error" in text
    kept = {f.name for f in out.iterdir()}
    assert kept >= {"profile.json", "profile.safetensors", "profile.png", "profile.svg", "report.html"}
    rows = rs.JacobianProfile.load(out).per_image().set_index("layer")
    assert rows["method"]["pool"] == "Lanczos"
    assert main([*command, "--method", "exact", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    for row in record["layers"]:
        assert rows["lower"][row["name"]] <= row["function_rank"]["upper"]
        assert row["function_rank"]["lower"] <= rows["upper"][row["name"]]
        assert "method" not in row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lanczos", "--probes", "0"], "--probes is 0; it must be a whole number of at least 1"),
        (["--method", "lanczos", "--steps", "0"], "--steps is 0; it must be a whole number of at least 1"),
        (["--method", "lanczos", "--steps", "many"], "--steps is 'many'; give a whole number of at least 1, or auto"),
        (["--method", "lanczos", "--bracket", "0"], "--bracket is 0.0; it must be a finite number above 0"),
        (["--probes", "4"], "--probes belongs to --method lanczos; --method is auto"),
        (["--method", "exact", "--probes", "4", "--steps", "3"], "--probes and --steps belong to --method lanczos"),
        (["--method", "svd"], "--method 'svd' is unknown"),
        (["--memory-budget", "little"], "--memory-budget"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["profile", "digits", *GIVEN, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("given", [["--patch", "4"], ["--columns", "sketch:8"], []])
def test_a_method_without_all_columns_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["profile", "digits", "--method", "lanczos", *given]) == 2
    error = capsys.readouterr().err
    assert "--method lanczos measures the full Jacobian; give --columns all with it" in error
    assert error.count("\n") == 1
