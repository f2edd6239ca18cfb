"""The text of an option's value: its name in errors, and what is refused in it whoever gave it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from rankscope._base.errors import UsageError

__all__ = ["check_text", "shortened", "shown_name", "texts"]

_MOST_DIGITS = 40  # of what is read as a number; what it may be at most, the library says
_LONGEST = 80
_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def shortened(text: str) -> str:
    """A value as an error shows it: what is longer than a line loses its middle.

    >>> shortened("seven"), len(shortened("9" * 5000))
    ('seven', 80)
    """
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 21]}…{text[-20:]}"


def check_text(name: str, text: str, wanted: type | None) -> None:
    """An empty text, and what is no number where ``wanted`` is one, is refused."""
    if not text.strip():
        raise UsageError(f"{name} is {text!r}, which is empty; give a value, or leave it out")
    if wanted is int and not (_WHOLE.fullmatch(text) and len(text) <= _MOST_DIGITS):
        raise UsageError(f"{name} is {shortened(text)!r}; give a whole number")
    if wanted is float and not (_REAL.fullmatch(text) and math.isfinite(float(text))):
        raise UsageError(f"{name} is {shortened(text)!r}; give a finite number")


def shown_name(param: Any) -> str:
    """As the help names an option or an argument."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name).split()[0].strip("[]").upper()
    return str(max(param.opts, key=len))


def texts(value: Any) -> Sequence[str]:
    """The texts of an option: one, or those of an option that may be repeated; a default is none."""
    several = value if isinstance(value, list | tuple) else [value]
    return [one for one in several if isinstance(one, str)]
