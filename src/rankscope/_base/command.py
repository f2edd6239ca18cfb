"""The command that runs, as its results record it: its words, and what a file of options said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["read_from", "running", "said"]

_KEY = "command"
_now: list[dict[str, Any]] = []


@contextlib.contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    """Inside, results record this command.

    >>> with running(["rankscope", "demo"]):
    ...     said()
    {'command': {'argv': ['rankscope', 'demo']}}
    >>> said()
    {}
    """
    _now.append({"argv": list(words)})
    try:
        yield
    finally:
        _now.pop()


def read_from(file: str, options: Mapping[str, Any]) -> None:
    """What the command took from a file of options, also the options that its own words replace."""
    if _now:
        _now[-1]["config"] = {"file": file, "options": dict(options)}


def said() -> dict[str, Any]:
    """The entry of a result's JSON; nothing where the library was called, not the command line."""
    return {_KEY: _now[-1]} if _now else {}
