"""Batches of small factorisations side by side on CPU threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from rankscope._base.threads import single_core_threads

__all__ = ["map_batches"]

T = TypeVar("T")
R = TypeVar("R")


def map_batches(function: Callable[[T], R], parts: Sequence[T], like: torch.Tensor) -> list[R]:
    """``function`` of every part, in order; on the CPU each part runs on one thread of its own.

    A Cholesky factorisation of a few hundred columns is slower on two threads than on one (measured: 6 to 10 × on two
    busy cores), so threads take whole batches. As many run at once as torch has threads; a GPU takes them in turn.

    >>> map_batches(lambda x: x + 1, [1, 2], torch.zeros(1))
    [2, 3]
    """
    threads = torch.get_num_threads()
    if like.device.type != "cpu" or threads == 1 or not parts:
        return [function(part) for part in parts]
    with single_core_threads(threads) as pool:
        return list(pool.map(function, parts))
