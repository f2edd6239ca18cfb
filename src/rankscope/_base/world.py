"""What a launcher of several processes, such as torchrun, says in the environment."""

from __future__ import annotations

import os

from rankscope._base.errors import UsageError

__all__ = ["local_rank", "local_size", "world_size"]


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"the environment variable {name} is {text!r}; a launcher sets it to a whole number: unset it")
    return int(text)


def world_size() -> int:
    """How many processes the launcher has started; 1 where there is none."""
    return _number("WORLD_SIZE") or 1


def local_rank() -> int | None:
    """The number of this process on its machine; ``None`` where no launcher says it."""
    return _number("LOCAL_RANK")


def local_size() -> int:
    """How many of the launcher's processes share this machine, and so its memory."""
    return _number("LOCAL_WORLD_SIZE") or 1
