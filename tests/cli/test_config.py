"""Options in a file, the command in its results, and completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

import rankscope as rs
from rankscope._base.errors import UsageError
from rankscope.cli.app import app, root
from rankscope.cli.config_file import read_options
from rankscope.cli.main import main

PROFILE = root().commands["profile"]


def parsed(command: Any, *words: str) -> dict[str, Any]:
    return dict(command.make_context("c", list(words)).params)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


TOML = """
model = "digits"
seed = 7
patch_offset = "3,4"
text = ["one", "-- two"]
bracket = 0.25
certify = false
theory = true
json = false
"""
YAML = """
model: digits
seed: 7
patch-offset: 3,4
text: [one, "-- two"]
bracket: 0.25
certify: false
theory: true
json: False
"""
WORDS = ["digits", "--seed=7", "--patch-offset=3,4", "--text=one", "--text=-- two", "--bracket=0.25", "--no-certify"]


@pytest.mark.parametrize(("name", "text"), [("run.toml", TOML), ("run.yaml", YAML)])
def test_a_file_says_what_the_words_would(tmp_path: Path, name: str, text: str) -> None:
    found = parsed(PROFILE, "--config", write(tmp_path, name, text))
    found.pop("config")
    wanted = parsed(PROFILE, *WORDS, "--theory")
    wanted.pop("config")
    assert found == wanted


def test_the_command_line_replaces_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "run.toml", TOML)
    found = parsed(PROFILE, "timm:x", "--seed", "1", "--config", file, "--certify", "--text", "three")
    assert (found["model"], found["seed"], found["certify"], found["text"]) == ("timm:x", 1, True, ["three"])
    assert found["bracket"] == 0.25


def test_arguments_that_may_be_several(tmp_path: Path) -> None:
    file = write(tmp_path, "c.yaml", "runs: [runs/a, -runs/b]\n")
    found = parsed(root().commands["compare"], "--config", file)
    assert [str(run) for run in found["runs"]] == ["runs/a", "-runs/b"]


def test_yaml_is_read_as_it_is_written(tmp_path: Path) -> None:
    """YAML 1.1 makes 8 of 010, 90 of 1:30 and false of no."""
    file = write(tmp_path, "x.yaml", "a: 010\nb: 1:30\nc: no\nd: 1e-3\ne: 2026-01-01\nf: 1_000\n")
    values = {key: given.values[0] for key, given in read_options(Path(file)).items()}
    assert [v.text for v in values.values()] == ["010", "1:30", "no", "1e-3", "2026-01-01", "1_000"]
    assert {v.kind for v in values.values()} == {"plain"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.toml", "tolerence = 1", r"r.toml: there is no option 'tolerence'; did you mean 'tolerance'\?"),
        ("r.toml", "tol = 1", r"there is no option 'tol'; did you mean 'tolerance'\?"),
        ("r.toml", "zzz = 1", r"r.toml: there is no option 'zzz'$"),
        ("r.toml", "seed = '7'", "seed in r.toml is the text '7'; give a whole number, without quotes"),
        ("r.yaml", "seed: '7'", "seed in r.yaml is the text '7'; give a whole number, without quotes"),
        ("r.yaml", "seed: seven", "seed in r.yaml is 'seven'; give a whole number"),
        ("r.toml", "seed = 1.5", "seed in r.toml is '1.5'; give a whole number"),
        ("r.toml", "seed = true", "seed in r.toml is true; give a whole number"),
        ("r.toml", "bracket = nan", "bracket in r.toml is 'nan'; give a finite number"),
        ("r.toml", "weights = false", "weights in r.toml is false; give a text or a number"),
        ("r.toml", "certify = 'no'", "certify in r.toml is 'no'; give true or false"),
        ("r.yaml", "certify: no", "certify in r.yaml is no; give true or false"),
        ("r.toml", "seed = [1, 2]", "seed in r.toml is a list, but takes one value"),
        ("r.toml", "weights = ''", "weights in r.toml is '', which is empty"),
        ("r.yaml", "weights:", "weights in r.yaml is empty"),
        ("r.toml", "[profile]\nseed = 1", "profile in r.toml is a table"),
        ("r.yaml", "seed: 1\nseed: 2", "r.yaml gives seed twice"),
        ("r.toml", "seed = 1\nseed = 2", "r.toml cannot be read"),
        ("r.toml", "cut-points = 'all'\ncut_points = 'all'", "r.toml gives cut_points and cut-points, which are one"),
        ("r.toml", "config = 'b.toml'", "--config belongs on the command line"),
        ("r.toml", "debug = true", "--debug belongs on the command line"),
        ("r.yaml", "- a", "r.yaml holds no keys"),
        ("r.yaml", "a: {b", r"r.yaml cannot be read, line 1"),
        ("r.json", "{}", r"ends with '.json'; give a .toml, .yaml or .yml file"),
    ],
)
def test_what_a_file_cannot_say(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parsed(PROFILE, "digits", "--config", write(tmp_path, name, text))


def test_a_missing_file_and_one_given_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the configuration"):
        parsed(PROFILE, "digits", "--config", str(tmp_path / "no.toml"))
    file = write(tmp_path, "a.toml", "seed = 1")
    with pytest.raises(UsageError, match="--config is given 2 times"):
        parsed(PROFILE, "digits", "--config", file, "--config", file)


def test_every_command_takes_a_file() -> None:
    def commands(group: Any) -> list[Any]:
        return [c for one in group.commands.values() for c in (commands(one) if hasattr(one, "commands") else [one])]

    found = commands(typer.main.get_command(app))
    assert len(found) == 14
    assert all(any(p.name == "config" for p in command.params) for command in found)


def test_results_record_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "run.toml", "columns = 'all'\nlimit = 1\ncut-points = 'fc'\ncertify = false")
    words = ["profile", "digits", "--config", file, "--json", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    wanted = {
        "argv": ["rankscope", *words],
        "config": {"file": file, "options": {"columns": "all", "limit": "1", "cut-points": "fc", "certify": False}},
    }
    assert printed["command"] == wanted
    assert json.loads((tmp_path / "run" / "profile.json").read_text())["command"] == wanted
    profile = rs.JacobianProfile.load(tmp_path / "run")  # which the entry does not disturb
    profile.save(tmp_path / "again")  # no command made this file
    assert "command" not in json.loads((tmp_path / "again" / "profile.json").read_text())


def test_other_results_record_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["theory", "predict", "--width", "4", "--depth", "2", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["command"] == {"argv": ["rankscope", *words]}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("rankscope pro", ["profile", "probe"]),
        ("rankscope theory pre", ["predict"]),
        ("rankscope profile digits --tol", ["--tolerance"]),
        ("rankscope profile digits --tolerance r", ["reference"]),
        ("rankscope profile eff", ["efficientnet-lite0"]),
        ("rankscope reproduce fig1d --sca", ["--scale"]),
    ],
)
def test_completion(
    line: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_RANKSCOPE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert main([]) == 0
    found = capsys.readouterr()
    assert found.out.split() == offered
    assert found.err == ""
