"""Whether a Jupyter notebook runs this process, and how it shows progress: one piece of HTML that changes in place."""

from __future__ import annotations

import html
import sys
from typing import Any

__all__ = ["NotebookBar", "in_notebook"]


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this process. IPython on a terminal has no kernel.

    >>> in_notebook()
    False
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A bar below the cell. It needs nothing but IPython, which the kernel has: no widgets, no extension."""

    def __init__(self) -> None:
        from IPython import display

        self._html = display.HTML
        self._shown: Any = display.display(display.HTML(""), display_id=True)

    def show(self, done: int, total: int | None, words: str) -> None:
        """Replace what is shown."""
        state = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
        self._shown.update(self._html(f"<progress{state}></progress> {html.escape(words)}"))

    def clear(self) -> None:
        """Leave nothing behind: the result that follows says what was done."""
        self._shown.update(self._html(""))
