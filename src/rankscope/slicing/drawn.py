"""Batches of a DataLoader, in which samples of unequal shapes stay apart; torch's random state is the same after."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, default_collate

from rankscope.slicing.values import is_array

__all__ = ["Apart", "drawn", "has_several_workers"]


@dataclass(frozen=True, eq=False)
class Apart:
    """The samples of a batch that torch's own collating cannot put into one, since their shapes are unequal."""

    items: list[Any]


def has_several_workers(inputs: Any) -> bool:
    """Whether it is the loader of a stream with more than one worker."""
    return isinstance(inputs, DataLoader) and inputs.num_workers > 1 and isinstance(inputs.dataset, IterableDataset)


def drawn(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader, in its order, with its workers; of an ``IterableDataset`` with one of them.

    Each worker has a copy of it and goes through all of it, unless it shares itself out among them: with several, its
    samples would come several times. One worker is told that it is alone, and gives all of them once. A data set that
    gives each number of a worker a part of its own, however many there are, is then read in part.
    """
    if has_several_workers(loader):
        loader = copy.copy(loader)
        loader._iterator, loader.num_workers = None, 1
    if loader.collate_fn is default_collate and type(loader).__iter__ is DataLoader.__iter__:
        loader = copy.copy(loader)
        loader._iterator = None  # the caller's own workers, where they persist, know another collating
        loader.collate_fn = _collated
    with _random_state_kept():  # the loader draws a seed for its workers, and its order where it shuffles
        iterator = iter(loader)
    while True:
        with _random_state_kept():
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch


_END = object()


def _collated(items: list[Any]) -> Any:
    layouts = {_layout(item) for item in items}
    return default_collate(items) if len(layouts) < 2 else Apart(items)


def _layout(item: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of an item's arrays and numbers, in order."""
    return tuple(tuple(leaf.shape) if is_array(leaf) else () for leaf in tree_leaves(item))


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """torch's random state is the same afterwards."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
