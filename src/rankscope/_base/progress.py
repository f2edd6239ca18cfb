"""Progress of long work: a bar on a terminal or in a notebook, lines in a log, a callback, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

from rankscope._base.notebook import NotebookBar, in_notebook

__all__ = ["Lines", "Progress", "Reporter", "progress_for", "reporting", "watched"]

T = TypeVar("T")
# bars, of which a terminal and a cell have one at a time; what nobody holds any more is no bar, though never closed
_shown: WeakSet[Reporter] = WeakSet()

Progress: TypeAlias = Callable[[int, int | None, str], Any]


class Reporter:
    """Call it with (done, total, text); close it when the work ends."""

    def __init__(self, callback: Progress | None = None) -> None:
        self._callback = callback
        self._said = ""

    def __call__(self, done: int, total: int | None, text: str) -> None:
        if self._callback is not None:
            self._callback(done, total, text)

    def say(self, text: str) -> None:
        """Show a line that stays; a callback does not get it."""

    def _news(self, text: str) -> str:
        """Nothing of a text that stands there as the last line that was said."""
        return "" if text == self._said else text

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
        _shown.add(self)

    def __call__(self, done: int, total: int | None, text: str) -> None:
        self._bar.update(self._task, completed=done, total=total, text=self._news(text))

    def say(self, text: str) -> None:
        self._said = text
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()
        _shown.discard(self)


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
            self._line(f"{_words(self._title, done, total, self._news(text))} ({passed:,.0f} s)")

    def say(self, text: str) -> None:
        self._said = text
        self._line(text)

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Notebook(Reporter):
    """Redrawn a few times a second, since every change is a message to the browser."""

    PAUSE = 0.2

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title, self._bar = title, NotebookBar()
        self._last = -self.PAUSE
        _shown.add(self)

    def __call__(self, done: int, total: int | None, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= self.PAUSE or done == total:
            self._last = now
            self._bar.show(done, total, _words(self._title, done, total, text))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.clear()
        _shown.discard(self)


def _words(title: str, done: int, total: int | None, text: str) -> str:
    """As a line says it.

    >>> _words("Jacobian rank", 2, 10, "layer4"), _words("demo", 0, None, "loading"), _words("demo", 3, 3, "")
    ('Jacobian rank: 2 of 10, layer4', 'demo: loading', 'demo: 3 of 3')
    """
    count = [] if total is None else [f"{done:,} of {total:,}"]
    return f"{title}: {', '.join([*count, text] if text else count)}".removesuffix(": ")


def progress_for(progress: bool | Progress | None, title: str) -> Reporter:
    """``True``: a bar on a terminal and in a notebook, else lines; ``None``: the bars alone; ``False``: nothing.

    A function is called with (done, total, text). Work within work that shows a bar shows none of its own.
    """
    if isinstance(progress, Reporter):
        return progress
    if callable(progress):
        return Reporter(progress)
    if progress is False or (progress is None and _shown):
        return Reporter()
    if in_notebook():
        return _Notebook(title)
    if sys.stderr is not None and sys.stderr.isatty():
        return _Bar(title)
    return Lines(title) if progress else Reporter()


@contextlib.contextmanager
def reporting(progress: bool | Progress | None, title: str) -> Iterator[Reporter]:
    """As ``progress_for``, closed at the end unless it is the caller's own."""
    report = progress_for(progress, title)
    try:
        yield report
    finally:
        if report is not progress:
            report.close()


def watched(
    items: Iterable[T], size: Callable[[T], int], total: Callable[[], int | None], report: Reporter, text: str
) -> Iterator[T]:
    """The items one by one; each is reported when the next is asked for. ``total`` is asked then, too.

    >>> said = []
    >>> list(watched("ab", len, lambda: 2, Reporter(lambda *what: said.append(what)), "letters")), said
    (['a', 'b'], [(1, 2, 'letters'), (2, 2, 'letters')])
    """
    done = 0
    for item in items:
        yield item
        done += size(item)
        most = total()
        # what was announced may be fewer than what comes
        report(done, most if most is None or done <= most else None, text)
