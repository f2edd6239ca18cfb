"""Signals that ask a command to end: Ctrl-C, SIGTERM and a closed terminal. Each ends the work as an interrupt does."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Stopping"]

_DEFAULT = {
    number: signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
}
_AGAIN = 2.0  # seconds: `timeout` signals a process and its group, and what is kept must still be said


class Stopping:
    """Use it as a context: inside, a signal that would end the process raises ``KeyboardInterrupt``.

    One that follows at once is passed over. A signal that the caller ignores or handles (``nohup``, a launcher) stays
    as it is. ``code`` is 128 and the number of the signal that came, and that of Ctrl-C where none did. With ``last``
    the process ends afterwards: a signal then ends it without a word, where Python would print a traceback.
    """

    def __init__(self, *, last: bool = False) -> None:
        self._ends = last
        self.code = 128 + signal.SIGINT
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._came: float | None = None
        self._over = False

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULT.items():
                found = signal.getsignal(number)
                if found is default:
                    self._before[number] = found
                    signal.signal(number, self._stop)
        return self

    def over(self) -> None:
        """The work has ended, so that there is nothing left to stop."""
        self._over = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if self._ends else handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that inherited the handler ends as it would without
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self._over or (self._came is not None and now - self._came < _AGAIN):
            return
        self._came = now
        self.code = 128 + number
        raise KeyboardInterrupt
