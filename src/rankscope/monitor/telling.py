"""What a monitor says while training goes on: each thing once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from rankscope._base.errors import type_and_line
from rankscope.monitor.history import Moment
from rankscope.monitor.loggers import Logger
from rankscope.monitor.merging import is_main

__all__ = ["Teller"]


class Teller:
    """Python warnings, each told once, and the loggers; of several processes the first one speaks."""

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.loggers = tuple(loggers)
        self.step = 0
        self._said: set[str] = set()

    def say(self, text: str, about: str = "") -> None:
        """Warn once of each text, or of each thing that it is about until ``well`` says that this is over."""
        if (about or text) not in self._said and is_main():
            self._said.add(about or text)
            warnings.warn(f"rankscope, step {self.step}: {text}", UserWarning, stacklevel=7)

    def well(self, about: str) -> None:
        """What was said about this is over."""
        self._said.discard(about)

    def log(self, moment: Moment) -> None:
        """Hand the numbers to the loggers. One that raises is named once, and training goes on without it."""
        if not self.loggers or not is_main():
            return
        values = {f"rank/{e.layer}/{e.metric}": e.value for e in moment.entries if e.value == e.value}
        for number, logger in enumerate(self.loggers):
            try:
                logger.log(values, moment.step)
            except Exception as error:  # another's code
                said = f"the logger {type(logger).__name__} failed ({type_and_line(error)})"
                self.say(said, f"logger {number}")
