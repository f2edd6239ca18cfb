"""What a launcher of several processes, such as torchrun, says in the environment, and the group that they make."""

from __future__ import annotations

import os

from rankscope._base.errors import UsageError

__all__ = ["group_size", "local_rank", "local_size", "world_size"]


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


def local_rank() -> int:
    """The number of this process on its machine; 0 where no launcher says it."""
    return _number("LOCAL_RANK") or 0


def local_size() -> int:
    """How many of the launcher's processes share this machine, and so its memory."""
    return _number("LOCAL_WORLD_SIZE") or 1


def group_size() -> int | None:
    """How many processes the initialised group of ``torch.distributed`` has; ``None`` without one."""
    import torch.distributed as dist  # help of the command line needs no torch

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else None
