"""Measurements of one process take turns: they hook the model, change its mode and set flags of the whole process."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

__all__ = ["in_turn", "one_at_a_time"]

_Args = ParamSpec("_Args")
_Made = TypeVar("_Made")

_TURN = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Inside, no other thread of this process measures; the same thread may enter again.

    Two threads that measured at once took each other's hooks and modes for the model's own, and left the flags of the
    process as the other had set them.
    """
    with _TURN:
        yield


def in_turn(function: Callable[_Args, _Made]) -> Callable[_Args, _Made]:
    """The function, called by one thread at a time.

    >>> in_turn(max)(1, 2)
    2
    """

    @functools.wraps(function)
    def called(*args: _Args.args, **kwargs: _Args.kwargs) -> _Made:
        with one_at_a_time():
            return function(*args, **kwargs)

    return called


def _anew() -> None:
    """A process that forks has one thread: whoever held the lock is not there to give it back."""
    global _TURN
    _TURN = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
