"""From arguments to an exit code: every failure is one line on standard error, a traceback only with ``--debug``."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from rankscope._base.command import running
from rankscope._base.errors import GlyphWarning, OutputError, RankscopeError, first_line, lack_of_memory, type_and_line
from rankscope.cli.allocator import keep_freed_memory
from rankscope.cli.interrupted import InterruptedRunError
from rankscope.cli.launched import ToldElsewhereError, launched
from rankscope.cli.stopping import Stopping
from rankscope.cli.streams import tolerant_streams

__all__ = ["main"]

_AGAIN = "interrupted; the same command starts again"
_LONGEST = 300


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 (failure), 2 (usage), or 130, 143 or 129 (Ctrl-C, SIGTERM, SIGHUP)."""
    given = list(sys.argv[1:] if args is None else args) or ["--help"]
    if args is None:  # the process is the command's own
        keep_freed_memory()
    with Stopping(last=args is None) as stopping, tolerant_streams() as (output, _), running(["rankscope", *given]):
        try:
            code = _run(given, stopping)
            stopping.over()
        except KeyboardInterrupt:  # it came while the end of another was put into words
            stopping.over()
            code = stopping.code
        output.flush()
        # a reader that left (head, less) has what it wanted; a full disk has not
        if code == 0 and output.failure is not None and not isinstance(output.failure, BrokenPipeError):
            return _failed(OutputError(f"standard output cannot be written: {output.failure}"), given, stopping)
        return code


def _run(given: list[str], stopping: Stopping) -> int:
    try:
        with launched(given), warnings.catch_warnings():
            if "--debug" not in given:
                # what other packages deprecate is nothing the user of a command can mend
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", GlyphWarning)
                warnings.showwarning = lambda message, *_, **__: print(
                    f"warning: {_one_line(str(message))}", file=sys.stderr
                )
            code = _application().main(given, prog_name="rankscope", standalone_mode=False)
            if code == 130:  # newer typer turns an interrupt into this code
                raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except ToldElsewhereError as told:
        return told.code
    except KeyboardInterrupt:
        return _stopped(_AGAIN, stopping)
    except SystemExit as ended:  # of completion, which answers a shell and then ends
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException as error:  # some packages raise errors that are no Exception
        return _failed(error, given, stopping)


def _stopped(text: str, stopping: Stopping) -> int:
    print(_one_line(text), file=sys.stderr)
    return stopping.code


def _application() -> Any:
    """The commands; they are imported here, so that Ctrl-C is put into words while they are."""
    from rankscope.cli.app import root

    return root()


def _failed(error: BaseException, given: list[str], stopping: Stopping) -> int:
    # click's and typer's own errors: told by what they offer, since typer carries a private copy of click
    usage = getattr(error, "format_message", None)
    if "--debug" in given and usage is None:
        traceback.print_exception(error)
    if isinstance(error, InterruptedRunError):
        return _stopped(str(error), stopping)
    if isinstance(error, getattr(sys.modules.get("typer"), "Abort", ())):  # what typer makes of an interrupt
        return _stopped(_AGAIN, stopping)
    if isinstance(error, RankscopeError):
        text, code = error.worded(_options(given).get), error.exit_code
    elif usage is not None:
        words = _command(given)[1]
        shown = "lists its options" if words else "lists the commands"
        help_of = " ".join(["rankscope", *words, "--help", shown])
        text, code = f"{usage()} ({help_of})", int(getattr(error, "exit_code", 2))
    elif (lack := lack_of_memory(error)) is not None:
        text, code = f"out of memory ({first_line(lack)})", 1
    else:
        text, code = (
            f"unexpected {type_and_line(error)}; run again with --debug for the traceback",
            1,
        )
    print(f"error: {_one_line(text)}", file=sys.stderr)
    return code


# names that the library has for what a command calls otherwise
_ALSO = {"n": "width", "jacobian_points": "points", "inputs": "data"}
# functions of the library that its messages recommend
_COMMANDS = {"rs.layers(model)": "rankscope layers", "rs.jacobian_rank": "rankscope profile"}


def _options(given: list[str]) -> dict[str, str]:
    """From a parameter's name to the option of the command that was given, for commands and groups of commands."""
    command = _command(given)[0]
    own = {p.name: max(p.opts, key=len) for p in command.params if p.name and p.opts and p.opts[0].startswith("-")}
    return {**_COMMANDS, **{name: own[other] for name, other in _ALSO.items() if other in own}, **own}


def _command(given: list[str]) -> tuple[Any, list[str]]:
    """The command that was given, and its words."""
    command = _application()
    words = []
    for word in given:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            words.append(word)
    return command, words


def _one_line(text: str) -> str:
    """One line, with the middle left out of every word that is longer than any name of a file."""
    return " ".join(word if len(word) <= _LONGEST else f"{word[:80]}…{word[-20:]}" for word in text.split())
