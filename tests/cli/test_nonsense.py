"""Every option of every command with what it cannot mean: one line that names the value, and nothing is written.

Commands and options are found by looking at the application, so that a new option is walked without a line here. A new
command needs a call of its own in ``CALLS``: what it is given beside the nonsense.
"""

from __future__ import annotations

import os
import shutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope.cli import main
from rankscope.cli.app import app, root

NET = """
from pathlib import Path
from torch import nn

def small():
    Path("built").touch()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    net.input_size = (1, 8, 8)
    return net
"""
MODEL = ["net.py:small", "--weights", "random"]
IMAGES = [*MODEL, "--images", "digits", "--limit", "1", "--out", "run"]
DATA = [*MODEL, "--data", "digits", "--limit", "8", "--out", "run"]
CALLS = {
    "layers": MODEL,
    "profile": IMAGES,
    "demo": [],
    "collect": DATA,
    "features": DATA,
    "clsdim": ["run.npz", "--out", "run"],
    "deficit": ["run.npz", "--out", "run"],
    "probe": ["relu", "--input-shape", "4x2x2", "--samples", "8", "--out", "run"],
    "watch": ["checkpoints", "--model", "net.py:small", *DATA[3:]],
    "compare": ["one", "two", "--out", "run"],
    "reproduce": ["fig1d", "--scale", "small", "--out", "run"],
    "theory chain": ["--width", "4", "--depth", "2", "--samples", "4", "--out", "run"],
    "theory predict": ["--width", "4", "--depth", "2"],
    "theory exponents": IMAGES,
}
FILES = ["no/such.npz", "folder", "damaged.npz", "damaged.npy", "damaged.pt", "ünï.npy", "n" * 300]
LONG = "9" * 5000
NONSENSE: dict[type, list[str]] = {
    int: ["", "seven", "1.5", "nan", "inf", "1e400", "-1", "0", "9" * 30, LONG, "3,", "²"],
    float: ["", "half", "nan", "-inf", "1e400", "-1", "0", "0.5,", "²"],
    str: ["", "\n", ",", "nönsense", "nonsense,", "nan", "1e400", "-1", "0", "-0.5", LONG, "folder", "damaged.npz"],
    Path: ["", " ", *FILES],
}
# What is meant after all: by command and option, else by option
MEANT = {
    "--out": {"no/such.npz", "folder", "ünï.npy"},
    "--classes": {"0"},
    "--cut-points": {"0"},  # the name of a layer
    "--residual": {"-1", "-0.5"},  # a branch may be subtracted
    "--tolerance": {"0"},
    "clsdim --least": {"0"},  # the search starts with no component
    "theory chain --tolerance": set(),
    "watch --weights-key": {"0"},  # the name of a layer, and so of tensors in the checkpoint
}
# Options whose values only a model that is there can refuse: its layers, its input, its parameters; and files, whose
# content is looked at when the model is there to take it
OF_THE_MODEL = {"--cut-points", "--patch", "--patch-offset", "--channels", "--columns", "--num-classes", "--weights"}
OF_THE_MODEL |= {"--images", "--data", "--weights-key", "--files"}
# A value that nothing would look at need not be named
UNUSED = ("belongs to", "belong to", "no meaning", "no use for", "needs a model", "chooses a part")
NAMES = {"--cut-points": "module"}
REMEDIES = ("; ", "did you mean", "known are", "lists its options", "lists the commands")
LONGEST = 1000


def commands(typer: Any = app, before: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for one in typer.registered_commands:
        yield " ".join((*before, one.name)), one.callback
    for group in typer.registered_groups:
        yield from commands(group.typer_instance, (*before, group.name))


def found(words: str) -> Any:
    command = root()
    for word in words.split():
        command = command.commands[word]
    return command


def plain(hint: Any) -> type:
    """``int`` of ``Annotated[int | None, …]``, ``str`` of ``list[str]``."""
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return plain(parts[0]) if parts else hint


def options() -> Iterator[tuple[str, str, type, Any]]:
    for words, callback in commands():
        hints = typing.get_type_hints(callback, include_extras=True)
        for param in found(words).params:
            if param.param_type_name == "option" and param.name in hints:
                yield words, max(param.opts, key=len), plain(hints[param.name]), param


WALKED = [(words, option, kind, param) for words, option, kind, param in options() if kind is not bool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("nonsense")
    (place / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    features, weight = rng.standard_normal((40, 6), np.float32), rng.standard_normal((4, 6), np.float32)
    arrays = {"features": features, "weight": weight, "bias": np.zeros(4, np.float32), "logits": features @ weight.T}
    np.savez(place / "run.npz", labels=np.arange(40) % 4, **arrays)
    (place / "folder").mkdir()
    (place / "checkpoints").mkdir()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    torch.save(net.state_dict(), place / "checkpoints" / "step-1.pt")
    (place / "damaged.npz").write_bytes(b"PK\3\4 and no more")
    (place / "damaged.npy").write_bytes(b"\x93NUMPY and no more")
    (place / "damaged.pt").write_bytes(b"\x80\2and no more")
    for name in ("one", "two"):
        rs.feature_rank(torch.from_numpy(features)).save(place / name)
    return place


def call(words: str, option: str, value: str) -> list[str]:
    """The command's own call, with the option that is walked in place of its value there."""
    given = list(CALLS[words])
    if option in given:
        at = given.index(option)
        del given[at : at + 2]
    return [*words.split(), *given, option, value]


def tree(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*") if "__pycache__" not in path.parts}


def objections(code: int, out: str, err: str, option: str, value: str) -> list[str]:
    """What is wrong with how a call ended."""
    word = NAMES.get(option, option.strip("-"))
    shown = value.strip().strip(",")[:50]
    named = shown in err or os.path.basename(value) in err or any(words in err for words in UNUSED)
    named |= value.isdecimal() and len(value) > 19 and " bits" in err
    checks = {
        f"exit code {code}": code in (1, 2),
        "printed to standard output": out == "",
        "not one line": err.count("\n") == 1 and err.startswith("error: "),
        "a raw error": "unexpected" not in err and "Traceback" not in err,
        "the value is not named": named,
        "the option is not named": option in err or word in err,
        "no remedy": any(remedy in err for remedy in REMEDIES),
        "too long": len(err) <= LONGEST,
    }
    return [text for text, right in checks.items() if not right]


@pytest.mark.parametrize(("words", "option", "kind", "param"), WALKED, ids=[f"{w} {o}" for w, o, *_ in WALKED])
def test_nonsense_is_one_line(
    words: str,
    option: str,
    kind: type,
    param: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    meant = MEANT.get(f"{words} {option}", MEANT.get(option, set()))
    before = tree(folder)
    wrong = {}
    for value in NONSENSE[kind]:
        if value in meant or value == str(param.default):
            continue
        code = main(call(words, option, value))
        out, err = capsys.readouterr()
        found = objections(code, out, err, option, value)
        written = tree(folder) - before
        if "built" in {Path(path).name for path in written}:
            (folder / "built").unlink()
            if option not in OF_THE_MODEL and words != "layers":
                found.append("the model was built")
        if any(Path(path).name != "built" for path in written):
            found.append(f"written: {sorted(written)}")
            shutil.rmtree(folder / "run", ignore_errors=True)
        if found:
            wrong[value[:40]] = (found, err[:300])
    assert not wrong, "\n".join(f"{value!r}: {found}" for value, found in wrong.items())


@pytest.mark.parametrize(("words", "option", "param"), [(w, o, p) for w, o, _, p in options()])
def test_an_option_that_is_given_twice(
    words: str,
    option: str,
    param: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which of two values is meant nobody knows; a flag twice is one flag, and not beside its opposite."""
    monkeypatch.chdir(folder)
    opposite = param.secondary_opts
    if param.multiple or (param.is_flag and not opposite):
        return
    given = [option, opposite[0]] if param.is_flag else [option, "1", option, "2"]
    before = tree(folder)
    assert main([*words.split(), *given]) == 2
    name = "/".join([option, *opposite])
    assert capsys.readouterr().err == f"error: {name} is given 2 times; give it once\n"
    assert tree(folder) == before


# Options of which one at most is given, those that only another gives a meaning, and values to give
EXCLUSIVE = {
    "deficit": [("--keep 0.8", "--eta 2")],
    "profile": [
        ("--columns all", "--patch 2"),
        ("--columns all", "--patch-offset 1,1"),
        ("--columns all", "--channels 0"),
        ("--columns sketch:4", "--method exact"),
        ("--columns sketch:4", "--method lanczos"),
        ("--columns sketch:4", "--background zero"),
        ("--method exact", "--probes 4"),
        ("--method exact", "--steps 4"),
        ("--method exact", "--bracket 0.1"),
        ("--text words", "--images digits"),
    ],
    "collect": [("--text words", "--data digits")],
    "features": [("--text words", "--data digits")],
    "watch": [("--text words", "--data digits")],
}
DEPENDENT = {
    "profile": [("--patch-offset 1,1", "--patch"), ("--channels 0", "--patch"), ("--probes 4", "--method")],
    "watch": [("--patience 5", "--follow")],
}
TOGETHER = [(w, " ".join(pair[::step]), pair) for w, pairs in EXCLUSIVE.items() for pair in pairs for step in (1, -1)]
TOGETHER += [(words, one, (one, other)) for words, pairs in DEPENDENT.items() for one, other in pairs]


@pytest.mark.parametrize(("words", "given", "options"), TOGETHER)
def test_options_that_exclude_each_other(
    words: str,
    given: str,
    options: tuple[str, str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In either order, and refused before the model is built: the error names both."""
    monkeypatch.chdir(folder)
    before = tree(folder)
    names = [option.split()[0] for option in options]
    own = list(CALLS[words])
    for name in {*names} & {*own}:
        del own[own.index(name) : own.index(name) + 2]
    assert main([*words.split(), *own, *given.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(name in err for name in names), err
    assert tree(folder) == before


# What the arguments (MODEL, RUN, DIR …) cannot be read from: nothing there, a folder, empty, binary, text, another kind
CONTENT = {"empty": b"", "binary": b"\x80\x02\xff\xfe and no text\x00\x01", "words": b"a few words\n"}
SUFFIXES = ("", ".py", ".npz", ".npy", ".pt", ".json", ".safetensors")
UNREADABLE = [f"{kind}{suffix}" for kind in CONTENT for suffix in SUFFIXES]
UNREADABLE += ["no/such", "no/such.npz", "no/such.py", "folder", "folder/", "another.npy"]
SOURCES = ("{}:small", "hf:{}")  # a file's factory, a model of Hugging Face


def given_as(name: str) -> list[str]:
    """What an argument is given: a model also as the ways to write one, of what may be taken for its place."""
    place = [bad for bad in UNREADABLE if Path(bad).suffix in ("", ".py")] if name.startswith("MODEL") else []
    return [*UNREADABLE, *(source.format(bad) for source in SOURCES for bad in place)]


def arguments() -> Iterator[tuple[str, int, str]]:
    """Command, place of an argument in the command's own call, and how the help names it."""
    for words, own in CALLS.items():
        given = [param for param in found(words).params if param.param_type_name == "argument"]
        places = next((k for k, text in enumerate(own) if text.startswith("--")), len(own))
        for place in range(places):
            yield words, place, str(given[min(place, len(given) - 1)].metavar)


ARGUMENTS = list(arguments())


@pytest.fixture(scope="module")
def unreadable(folder: Path) -> Path:
    for name in UNREADABLE[: len(CONTENT) * len(SUFFIXES)]:
        (folder / name).write_bytes(CONTENT[name.partition(".")[0]])
    np.save(folder / "another.npy", np.zeros((3, 3), np.float32))
    return folder


@pytest.mark.parametrize(("words", "place", "name"), ARGUMENTS, ids=[f"{w} {n} {p}" for w, p, n in ARGUMENTS])
def test_an_argument_that_cannot_be_read_is_one_line(
    words: str,
    place: int,
    name: str,
    unreadable: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(unreadable)
    before = tree(unreadable)
    wrong = {}
    for value in given_as(name):
        code = main([*words.split(), *CALLS[words][:place], value, *CALLS[words][place + 1 :]])
        out, err = capsys.readouterr()
        checks = {
            f"exit code {code}": code in (1, 2),
            "printed to standard output": out == "",
            "not one line": err.count("\n") == 1 and err.startswith("error: "),
            "a raw error": "unexpected" not in err and "Traceback" not in err,
            # of a model's source, or of a file's factory, the part that is wrong
            "the value is not named": os.path.basename(value.removeprefix("hf:").partition(":")[0].rstrip("/")) in err,
            "written": tree(unreadable) == before,
        }
        if not all(checks.values()):
            wrong[value] = ([text for text, right in checks.items() if not right], err[:300])
    assert not wrong, "\n".join(f"{value!r}: {said}" for value, said in wrong.items())


def test_a_flag_twice_is_one_flag(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "predict", "--width", "4", "--depth", "2", "--json", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")


def test_the_help_is_shown_beside_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "predict", "--width", "seven", "--help"]) == 0
    assert "Usage: rankscope theory predict" in capsys.readouterr().out


def test_the_calls_are_those_of_every_command() -> None:
    assert set(CALLS) == {words for words, _ in commands()}
    assert len(WALKED) > 100
