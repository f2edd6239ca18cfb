"""What every command refuses in its options before it does anything: nothing given, given twice, no number."""

from __future__ import annotations

import functools
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from rankscope._base.errors import UsageError

__all__ = ["Command", "shortened"]

_MOST_DIGITS = 40  # of what is read as a number; what it may be at most, the library says
_LONGEST = 80
_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


class Command(TyperCommand):
    """A command whose options are each given once, with a value, and a number where one is meant.

    What reads a number into its type names neither the option's value nor what to write, and a path of no letters
    would be the folder that the user happens to be in.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the parent's, after these checks; whoever asks for the help gets it."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        if not values.get("help") and not ctx.resilient_parsing:
            given = [p for p in self.params if p.name in values and values[p.name] is not None]
            for param in given:
                _check_once(param, sum(one is param for one in order))
            wanted = _types(self.callback)
            for param in given:
                if not getattr(param, "is_flag", False):
                    for text in _texts(values[str(param.name)]):
                        _check_text(_shown_name(param), text, wanted.get(str(param.name)))
        return super().parse_args(ctx, args)


def shortened(text: str) -> str:
    """A value as an error shows it: what is longer than a line loses its middle.

    >>> shortened("seven"), len(shortened("9" * 5000))
    ('seven', 80)
    """
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 21]}…{text[-20:]}"


def _check_once(param: Any, times: int) -> None:
    # a flag that is given again says the same, unless it has a form that says the opposite
    repeatable = param.param_type_name == "argument" or param.multiple
    if times > 1 and not repeatable and (not param.is_flag or param.secondary_opts):
        name = "/".join([max(param.opts, key=len), *param.secondary_opts])
        raise UsageError(f"{name} is given {times} times; give it once")


def _check_text(name: str, text: str, wanted: type | None) -> None:
    if not text.strip():
        raise UsageError(f"{name} is {text!r}, which is empty; give a value, or leave it out")
    if wanted is int and not (_WHOLE.fullmatch(text) and len(text) <= _MOST_DIGITS):
        raise UsageError(f"{name} is {shortened(text)!r}; give a whole number")
    if wanted is float and not (_REAL.fullmatch(text) and math.isfinite(float(text))):
        raise UsageError(f"{name} is {shortened(text)!r}; give a finite number")


def _shown_name(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name).split()[0].strip("[]").upper()
    return str(max(param.opts, key=len))


def _texts(value: Any) -> Sequence[str]:
    """The texts of an option: one, or those of an option that may be repeated; a default is none."""
    several = value if isinstance(value, list | tuple) else [value]
    return [one for one in several if isinstance(one, str)]


@functools.cache
def _types(callback: Any) -> dict[str, type]:
    """The type of each parameter of a command's function, without ``None``, a list around it and its help."""
    return {name: _plain(hint) for name, hint in typing.get_type_hints(callback).items()}


def _plain(hint: Any) -> Any:
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return _plain(parts[0]) if parts else hint
