"""Row R11: each command that runs out of memory names options of its own; what counts is the type of the error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import typer

from rankscope._base.errors import ModelError, first_line, is_out_of_memory, lack_of_memory
from rankscope.cli import main
from rankscope.cli.app import app
from rankscope.cli.memory import OutOfMemoryError, saves_memory


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        return [(path, command)]
    return [found for name, child in children.items() for found in commands(child, (*path, name))]


COMMANDS = [(path, c) for path, c in commands(typer.main.get_command(app)) if path != ("demo",)]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_remedy_is_an_option_of_the_command(path: tuple[str, ...], command: Any) -> None:
    own = {form for parameter in command.params for form in parameter.opts}
    remedies = command.callback.remedies
    assert remedies
    named = {word for remedy in remedies for word in re.findall(r"[a-z-]+", remedy)}
    if path != ("clsdim",):  # a smaller run comes from another command
        assert {word for word in named if word.startswith("--")} <= own
    assert named & own  # an option, or an argument such as the runs of compare


def too_large_for_torch() -> None:
    torch.empty(2**50)


def too_large_for_numpy() -> None:
    np.empty(2**50)


def of_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def wrapped() -> None:
    try:
        of_the_gpu()
    except RuntimeError as error:
        raise ModelError("the model cannot be run") from error


@pytest.mark.parametrize("work", [too_large_for_torch, too_large_for_numpy, of_the_gpu, wrapped])
def test_what_counts_as_out_of_memory(work: Callable[[], None]) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        work()
    assert is_out_of_memory(caught.value)
    with pytest.raises(
        OutOfMemoryError, match=r"^out of memory \(.*\); give a smaller --patch or --device cpu$"
    ) as told:
        saves_memory("a smaller --patch", "--device cpu")(work)()
    assert told.value.__cause__ is not None
    assert first_line(lack_of_memory(caught.value)) in str(told.value)  # not the words of what it led to


@pytest.mark.parametrize("error", [ValueError("the GPU is out of memory"), RuntimeError("CUDA error: no device"), None])
def test_words_alone_do_not_count(error: BaseException | None) -> None:
    assert not is_out_of_memory(error)

    def work() -> None:
        if error is not None:
            raise error

    if error is not None:
        with pytest.raises(type(error), match=str(error)):
            saves_memory("--device cpu")(work)()


def test_a_command_names_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rankscope.cli import chosen_model

    monkeypatch.setattr(chosen_model, "load_model", lambda *_, **__: torch.empty(2**50))
    # a value that is the name of another command does not confuse
    assert main(["layers", "profile"]) == 1
    error = capsys.readouterr().err
    assert "DefaultCPUAllocator" in error
    assert "--weights random" in error
    assert "--patch" not in error
    assert error.count("\n") == 1
