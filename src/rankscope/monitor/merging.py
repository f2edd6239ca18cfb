"""Moments of all processes of a training run as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from rankscope._base.errors import DataError
from rankscope._base.world import group_size
from rankscope.monitor.hooks import StepFeatures

__all__ = ["any_process", "from_main", "is_main", "merge_processes", "processes"]

_Value = TypeVar("_Value")


def processes() -> int:
    """How many processes train together."""
    return group_size() or 1


def is_main() -> bool:
    """Whether this process writes."""
    return processes() == 1 or torch.distributed.get_rank() == 0


def _device() -> torch.device:
    """Where what is exchanged must be."""
    nccl = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def any_process(value: bool) -> bool:
    """Whether it is true in any process; each asks at the same step."""
    if processes() == 1:
        return value
    flag = torch.tensor(int(value), device=_device())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


def from_main(value: _Value) -> _Value:
    """The first process's value in every process; each asks at the same step."""
    if processes() == 1:
        return value
    holder = [value]
    torch.distributed.broadcast_object_list(holder, src=0, device=_device())
    return holder[0]


def merge_processes(found: StepFeatures, names: Sequence[str]) -> None:
    """Let every process hold the moments of all: each calls this at the same step.

    A layer that one process could not read is read in none, or the others would wait for it for ever.
    """
    if processes() == 1:
        return
    mine = [name not in found.errors and found.stores[name].filled for name in names]
    exact = [ok and found.stores[name].mergeable(name) for name, ok in zip(names, mine, strict=True)]
    flags = torch.tensor([mine, exact], dtype=torch.int64, device=_device())
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MIN)
    for name, everywhere, together in zip(names, *flags.tolist(), strict=True):
        if not everywhere:
            found.errors.setdefault(name, f"{name}: another process could not read it in this step")
        elif not together:
            found.errors.setdefault(
                name, f"{name}: its moments are too wide, or too large or small, to be merged; give reduce='pool'"
            )
        else:
            try:
                found.stores[name].merge_processes(name)
            except DataError as error:  # of the rows of all, so every process meets it
                found.errors[name] = str(error)
