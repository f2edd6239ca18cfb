"""A command that runs out of memory names the options of its own that need less."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rankscope._base.errors import RankscopeError, first_line, lack_of_memory

__all__ = ["OutOfMemoryError", "saves_memory"]

P = ParamSpec("P")
R = TypeVar("R")


class OutOfMemoryError(RankscopeError):
    """The command did not fit into the memory; the message names what uses less."""


def saves_memory(*remedies: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a command with the options to lower or to change, such as ``"a smaller --batch"``."""

    def decorated(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **options: P.kwargs) -> R:
            try:
                return command(*args, **options)
            except BaseException as error:
                lack = lack_of_memory(error)
                if lack is None:
                    raise
                text = f"out of memory ({first_line(lack)}); give {' or '.join(remedies)}"
                raise OutOfMemoryError(text) from error

        run.remedies = remedies  # type: ignore[attr-defined]
        return run

    return decorated
