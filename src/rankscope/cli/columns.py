"""``--columns``, ``--patch`` and the options that belong to a patch."""

from __future__ import annotations

import re
from typing import Any

from rankscope._base.errors import UsageError, nearest
from rankscope.cli.parsing import whole_number

__all__ = ["parse_columns"]


def parse_columns(columns: str | None, patch: str | None, offset: str | None, channels: str | None, seed: int) -> Any:
    """The columns of the Jacobian that the options choose together.

    Raises
    ------
    UsageError
        For options that exclude each other, and for texts that are none of the forms.

    Examples
    --------
    >>> parse_columns(None, "8x4", "0,2", None, seed=0)
    Patch(size=(8, 4), centre=None, offset=(0, 2), channels=None, ...)
    """
    options = {"--patch": patch, "--patch-offset": offset, "--channels": channels}
    given = next((option for option, value in options.items() if value is not None), None)
    if columns is not None and given is not None:
        raise UsageError(f"--columns {columns} and {given} choose different columns; give one of them")
    if patch is None and offset is not None:
        raise UsageError(f"--patch-offset {offset} needs a size; add --patch 16")
    if patch is None and channels is not None:
        raise UsageError(f"--channels {channels} needs a patch; add --patch 16")
    if patch is not None:
        from rankscope.slicing import Patch

        chosen = None if channels is None else _numbers(channels)
        return Patch(_size(patch), offset=None if offset is None else _pair(offset), channels=chosen)
    text = columns or "auto"
    kind, _, count = text.partition(":")
    if kind == "sketch":
        from rankscope.slicing import Sketch

        directions = whole_number(count)
        if directions is None:
            raise UsageError(f"--columns {text!r}: write sketch:K the number of directions, such as sketch:768")
        return Sketch(directions, seed)
    if kind == "position":
        from rankscope.slicing import Positions

        if re.fullmatch(r"-?[0-9]{1,9}(\s*,\s*-?[0-9]{1,9})*", count.strip()) is None:
            raise UsageError(f"--columns {text!r}: write position:N the number of a token, such as position:3")
        return Positions([int(part) for part in count.split(",")])
    if text not in ("all", "auto"):
        raise UsageError(f"--columns {text!r} is unknown; {nearest(text, ['all', 'auto', 'sketch:K', 'position:N'])}")
    return text


def _size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})(?:[x×]([0-9]{1,9}))?", text.strip())
    if match is None:
        raise UsageError(f"--patch {text!r} is not a size; write 16, or 8x32 for height 8 and width 32")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(-?[0-9]{1,9}),\s*(-?[0-9]{1,9})", text.strip())
    if match is None:
        raise UsageError(f"--patch-offset {text!r} is not a position; write ROW,COL, such as 96,104")
    return int(match[1]), int(match[2])


def _numbers(text: str) -> list[int]:
    numbers = [whole_number(part.strip()) for part in text.split(",")]
    if None in numbers:
        raise UsageError(f"--channels {text!r} is not a list of channels; write their numbers, such as 0 or 0,2")
    return [number for number in numbers if number is not None]
