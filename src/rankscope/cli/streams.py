"""Standard output and standard error that cannot stop the work: closed, full, or of an encoding that lacks a letter."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

__all__ = ["Stream", "tolerant_streams"]


class Stream:
    """Writes to ``stream`` as long as that is possible; afterwards drops what is written; ``failure`` says why.

    A result that took hours is written into files first: a pipe whose reader left must not end the work before that.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self.failure: OSError | ValueError | None = None
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):
                # file names need not be text, and ASCII lacks the signs of the tables
                reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if self._stream is not None and self.failure is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self.failure = error
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self.failure = error

    def isatty(self) -> bool:
        return self._stream is not None and self.failure is None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            known = {"encoding": "utf-8", "errors": "backslashreplace", "closed": False}
            if name in known:
                return known[name]
            raise AttributeError(f"a closed stream has no {name}")
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[tuple[Stream, Stream]]:
    """Inside, ``sys.stdout`` and ``sys.stderr`` are such streams, which are yielded in that order."""
    _fill_closed()
    before = sys.stdout, sys.stderr
    output, errors = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = output, errors
    try:
        yield output, errors
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
        for number, stream in ((1, output), (2, errors)):
            if stream.failure is not None:
                # Python would complain again when it flushes at exit
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _fill_closed() -> None:
    """Put the null device where a standard stream was closed, or the next file to be opened would take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
