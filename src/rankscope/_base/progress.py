"""Progress of long work: a bar on a terminal or in a notebook, lines in a log, a callback, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from rankscope._base.notebook import NotebookBar, in_notebook

__all__ = ["Lines", "Progress", "Reporter", "progress_for"]

Progress: TypeAlias = Callable[[int, int | None, str], Any]


class Reporter:
    """Call it with (done, total, text); close it when the work ends."""

    def __init__(self, callback: Progress | None = None) -> None:
        self._callback = callback

    def __call__(self, done: int, total: int | None, text: str) -> None:
        if self._callback is not None:
            self._callback(done, total, text)

    def say(self, text: str) -> None:
        """Show a line that stays; a callback does not get it."""

    def close(self) -> None:
        """End the display."""


class _Bar(Reporter):
    def __init__(self, title: str) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            transient=True,
            # what is printed meanwhile goes above the bar, unless it goes to a file or a pipe
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(title, total=None, text="")
        self._bar.start()

    def __call__(self, done: int, total: int | None, text: str) -> None:
        self._bar.update(self._task, completed=done, total=total, text=text)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


class Lines(Reporter):
    """Lines on standard error, for a log: at most one in ten seconds, and fewer the longer the work takes.

    Work of a few seconds leaves none. A log of a night has about a hundred: the pauses grow with the time that passed.
    """

    PAUSE = 10.0  # seconds at least between two lines
    SHARE = 0.05  # of the time that passed, too

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._title, self._clock = title, clock
        self._started = self._last = clock()

    def __call__(self, done: int, total: int | None, text: str) -> None:
        now = self._clock()
        passed = now - self._started
        if now - self._last >= max(self.PAUSE, self.SHARE * passed):
            self._last = now
            self.say(f"{_words(self._title, done, total, text)} ({passed:,.0f} s)")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Notebook(Reporter):
    """Redrawn a few times a second, since every change is a message to the browser."""

    PAUSE = 0.2

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title, self._bar = title, NotebookBar()
        self._last = -self.PAUSE

    def __call__(self, done: int, total: int | None, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= self.PAUSE or done == total:
            self._last = now
            self._bar.show(done, total, _words(self._title, done, total, text))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.clear()


def _words(title: str, done: int, total: int | None, text: str) -> str:
    """As a line says it.

    >>> _words("Jacobian rank", 2, 10, "layer4"), _words("demo", 0, None, "loading"), _words("demo", 3, 3, "")
    ('Jacobian rank: 2 of 10, layer4', 'demo: loading', 'demo: 3 of 3')
    """
    count = [] if total is None else [f"{done:,} of {total:,}"]
    return f"{title}: {', '.join([*count, text] if text else count)}".removesuffix(": ")


def progress_for(progress: bool | Progress | None, title: str) -> Reporter:
    """``True``: a bar on a terminal and in a notebook, else lines; ``None``: the bars alone; ``False``: nothing.

    A function is called with (done, total, text).
    """
    if isinstance(progress, Reporter):
        return progress
    if callable(progress):
        return Reporter(progress)
    if progress is False:
        return Reporter()
    if in_notebook():
        return _Notebook(title)
    if sys.stderr is not None and sys.stderr.isatty():
        return _Bar(title)
    return Lines(title) if progress else Reporter()
