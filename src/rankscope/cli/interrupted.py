"""How a command ends when its user stops it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rankscope._base.errors import ProcessError, RankscopeError

__all__ = ["InterruptedRunError", "saying_what_is_kept"]


class InterruptedRunError(RankscopeError):
    """The user stopped the work; the message says what was kept."""

    exit_code = 130


@contextmanager
def saying_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """An interrupt, or the end of another process, becomes one line that says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(f"interrupted: {kept()}") from None
    except ProcessError as error:
        raise ProcessError(f"{error.marked}; {kept()}") from error
