"""``rankscope theory`` as a user meets it: files, printed tables, JSON, and every refusal in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from rankscope.cli import main

SMALL = ("theory", "chain", "--width", "20", "--depth", "8", "--samples", "60")


def test_chain_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "deep" / "run"
    assert main([*SMALL, "--seeds", "0,3", "--out", str(out)]) == 0
    text, errors = capsys.readouterr()
    assert "Jacobian rank" in text
    assert "2 seeds" in text
    assert str(out) in text
    assert errors == ""
    assert sorted(p.name for p in out.iterdir()) == ["chain.csv", "chain.json", "chain.png", "chain.svg"]
    record = json.loads((out / "chain.json").read_text())
    assert record["seeds"] == [0, 3]
    assert record["kind"] == "chain_profile"
    rows = list(csv.DictReader((out / "chain.csv").open()))
    assert len(rows) == 16
    assert int(rows[-1]["jacobian_rank"]) == record["jacobian_ranks"][1][-1]
    with Image.open(out / "chain.png") as image:
        assert image.width >= 900
    assert "<svg" in (out / "chain.svg").read_text()


def test_the_figure_repeats_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a", "b"):
        assert main([*SMALL, "--out", str(tmp_path / name)]) == 0
    for kind in ("svg", "png", "csv"):
        assert (tmp_path / "a" / f"chain.{kind}").read_bytes() == (tmp_path / "b" / f"chain.{kind}").read_bytes()


def test_chain_json_is_all_of_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--residual", "0.5", "--activation", "gelu", "--normalisation", "layernorm", "--init", "xavier_normal"]
    assert main([*SMALL, *options, "--tolerance", "0.01", "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["residual"] == 0.5
    assert record["activation"] == "gelu"
    assert record["normalisation"] == "layernorm"
    assert record["tolerance"]["rtol"] == 0.01


def test_float32_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--init", "normal(0.01)", "--float32-stop", "--out", str(tmp_path)]
    assert main(["theory", "chain", "--width", "20", "--samples", "50", *options, "--depth", "30"]) == 0
    assert "stopped at layer" in capsys.readouterr().out
    assert json.loads((tmp_path / "chain.json").read_text())["stopped_at"][0] < 30


def test_predict(capsys: pytest.CaptureFixture[str]):
    assert main(["theory", "predict", "--width", "1000", "--depth", "50"]) == 0
    assert capsys.readouterr().out == "250.2 of 1,000 after 50 layers (tracy-widom, paper)\n"
    assert main(["theory", "predict", "--width", "1000", "--depth", "50", "--law", "lyapunov", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 303
    assert main(["theory", "predict", "--width", "1000", "--depth", "20", "--tolerance", "reference"]) == 0
    assert capsys.readouterr().out.startswith("26")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict", "--width", "0", "--depth", "5"], "--width is 0"),
        (["predict", "--width", "5"], "Missing option '--depth'"),
        (["predict", "--width", "5", "--depth", "5", "--law", "gaus"], "unknown --law 'gaus'"),
        (["predict", "--width", "5", "--depth", "5", "--tolerance", "papr"], "papr"),
        (["chain", "--seeds", "0;1"], "--seeds '0;1' is not a list of whole numbers"),
        (["chain", "--seeds", "-1"], "--seeds is -1"),
        (["chain", "--residual", "big"], "--residual 'big' is not a number"),
        (["chain", "--residual", "0"], "--residual is '0'"),
        (["chain", "--width", "0"], "width is 0"),
        (["chain", "--init", "kaiming"], "unknown --init 'kaiming'"),
        (["chain", "--activation", "rel"], "unknown --activation 'rel'"),
        (["chain", "--normalisation", "norm"], "unknown --normalisation 'norm'"),
        (["chain", "--samples", "1"], "--samples is 1"),
        (["chain", "--depth", "many"], "--depth"),
        (["chain", "--depth", "0"], "depth is 0"),
        (["chain", "--init", "normal(-1)"], "the standard deviation of init is -1.0"),
        (["predict", "--width", "5", "--depth", "0"], "depth is 0"),
        (["exponents", "digits", "--top", "0"], "--top is 0; it must be a whole number of at least 1"),
        (["exponents", "digits", "--cut-points", "pool,fc"], "no chain of two blocks or more of one width"),
        (["exponents", "digits", "--cut-points", "layr1"], "layr1"),
        (["exponents", "digits", "--dtype", "float16"], "float16"),
        (["exponents", "digit"], "digit"),
    ],
)
def test_refusals(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [] if args[0] == "predict" else ["--out", str(tmp_path / "run")]
    assert main(["theory", *args, *options]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "file"
    file.write_text("")
    assert main([*SMALL, "--out", str(file)]) == 1
    assert "cannot write into" in capsys.readouterr().err


def test_a_chain_that_stops_at_once_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*SMALL, "--init", "normal(1e-9)", "--float32-stop", "--out", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: no depth was measured before the float32 stop")
    assert errors.count("\n") == 1


def test_exponents_of_the_digits_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    assert main(["theory", "exponents", "digits", "--limit", "2", "--top", "5", "--out", str(out)]) == 0
    text, errors = capsys.readouterr()
    assert "5 leading exponents of 2 blocks of width 1,024 (16×8×8) on 2 inputs" in text
    assert "from stem.2 through layer1.0 to layer1.1" in text
    assert errors == ""
    names = ["exponents-by-image.csv", "exponents.csv", "exponents.json", "exponents.png", "exponents.svg"]
    assert sorted(p.name for p in out.iterdir()) == names
    record = json.loads((out / "exponents.json").read_text())
    assert record["tracked"] == 5
    assert len(list(csv.DictReader((out / "exponents-by-image.csv").open()))) == 10
    assert main(["theory", "exponents", "digits", "--limit", "2", "--top", "5", "--json", "--out", str(out)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["exponents"] == record["exponents"]


def test_profile_with_theory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["profile", "digits", "--limit", "2", "--theory", "--out", str(tmp_path)]
    assert main([*options, "--cut-points", "layer3.1,flatten"]) == 0
    text = capsys.readouterr().out
    assert "against a random Gaussian chain, 64 columns" in text
    assert "The network loses more rank than a random Gaussian chain of the same widths at" in text
    record = json.loads((tmp_path / "against-random.json").read_text())
    assert record["verdict"] == "faster"
    assert "random layers, same widths" in (tmp_path / "profile.svg").read_text()
    assert main([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against_random"]["layers"][-1]["predicted"] == 10
