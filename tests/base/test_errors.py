"""Messages name parameters; the command line names its own options."""

from __future__ import annotations

import pytest

from rankscope._base.checks import count_of, device_of
from rankscope._base.errors import RankscopeError, UsageError, first_line, parameter
from rankscope.cli.main import main

RANDOM = parameter("weights", "random")


def test_one_message_in_two_terms() -> None:
    error = UsageError(
        f"no such file; use {parameter('weights', 'random')}, {parameter('limit', 3)} or {parameter('x')}"
    )
    assert str(error) == 'no such file; use weights="random", limit=3 or x'
    flags = {"weights": "--weights", "limit": "--limit"}
    assert error.worded(flags.get) == "no such file; use --weights random, --limit 3 or x"
    assert str(RankscopeError("plain")) == "plain"


def test_the_first_line_is_short_and_ends_with_a_word() -> None:
    assert first_line(ValueError("word " * 60 + "\nmore")) == "word " * 39 + "…"
    assert first_line(ValueError("x" * 300)) == "x" * 198 + " …"
    assert first_line(ValueError("short.")) == "short"


def test_a_switch_has_no_value() -> None:
    error = UsageError(f"give {parameter('certify', True)} or {parameter('out', 'FOLDER')}")
    assert str(error) == "give certify=True or out=FOLDER"
    assert error.worded({"certify": "--certify"}.get) == "give --certify or out=FOLDER"


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "mps"])
def test_the_library_names_parameters(device: str) -> None:
    with pytest.raises(RankscopeError, match=r"^device '") as caught:
        device_of(device)
    assert "--" not in str(caught.value)


def test_the_command_line_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "digits", "--limit", "0"]) == 2
    assert "--limit is 0; " in capsys.readouterr().err
    assert main(["profile", "timm:resnet18", "--weights", "random", "--device", "cuda:99"]) == 1
    assert "use --device " in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"^limit is 0; "):
        count_of(0, "limit")
