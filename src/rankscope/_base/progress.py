"""Progress of long work: a bar on a terminal, a callback, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

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
    """Only the lines that stay, on standard error: for a log."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def progress_for(progress: bool | Progress | None, title: str) -> Reporter:
    """``None``: a bar where standard error is a terminal; ``True``: always; ``False``: never; or a function."""
    if isinstance(progress, Reporter):
        return progress
    if callable(progress):
        return Reporter(progress)
    if progress or (progress is None and sys.stderr.isatty()):
        return _Bar(title)
    return Reporter()
