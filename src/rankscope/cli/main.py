"""From arguments to an exit code: every failure is one line on standard error, a traceback only with ``--debug``."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import typer

from rankscope._base.errors import RankscopeError
from rankscope.cli.app import app
from rankscope.cli.interrupted import InterruptedRunError

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 (failure), 2 (usage) or 130 (interrupted)."""
    given = list(sys.argv[1:] if args is None else args) or ["--help"]
    debug = "--debug" in given
    try:
        with warnings.catch_warnings():
            if not debug:
                # what other packages deprecate is nothing the user of a command can mend
                warnings.simplefilter("ignore")
            code = typer.main.get_command(app).main(given, prog_name="rankscope", standalone_mode=False)
            sys.stdout.flush()
        if code == 130:  # newer typer turns an interrupt into this code
            return _stopped("interrupted")
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _stopped("interrupted")
    except BrokenPipeError:
        # the reader (head, less) left; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _failed(error, debug)


def _stopped(text: str) -> int:
    print(_one_line(text), file=sys.stderr)
    return 130


def _failed(error: Exception, debug: bool) -> int:
    # click's and typer's own errors: told by what they offer, since typer carries a private copy of click
    usage = getattr(error, "format_message", None)
    if debug and usage is None:
        traceback.print_exception(error)
    if isinstance(error, InterruptedRunError):
        return _stopped(str(error))
    if isinstance(error, RankscopeError):
        text, code = str(error), error.exit_code
    elif usage is not None:
        text, code = f"{usage()} (rankscope --help shows the commands)", int(getattr(error, "exit_code", 2))
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        text, code = f"out of memory ({_first(error)}); give a smaller --memory-budget or a smaller --patch", 1
    else:
        text, code = f"unexpected {type(error).__name__}: {_first(error)}; run again with --debug for the traceback", 1
    print(f"error: {_one_line(text)}", file=sys.stderr)
    return code


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def _one_line(text: str) -> str:
    return " ".join(text.split())
