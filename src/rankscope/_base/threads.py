"""Threads that work on one processor core each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["single_core_threads"]


@contextmanager
def single_core_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in each of which torch uses one core: if all took all of them, they would wait for each other.

    >>> with single_core_threads(2) as pool:
    ...     list(pool.map(lambda _: torch.get_num_threads(), range(2)))
    [1, 1]
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # threads to come take over what any thread asked for last
