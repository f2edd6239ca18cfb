"""Rows of what a call takes beside its input: a tensor, or a dict, list or tuple that holds tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from rankscope.slicing.values import as_number, as_tensor, is_array

__all__ = ["arrays_of", "counts_entries", "holds_arrays", "one_row", "rows_of", "with_rows"]


def arrays_of(value: Any) -> list[Any]:
    """The tensors and arrays that a value is or holds.

    >>> import torch
    >>> [tuple(a.shape) for a in arrays_of({"a": torch.zeros(2, 3), "b": [torch.zeros(2), "text"]})]
    [(2, 3), (2,)]
    """
    return [leaf for leaf in tree_leaves(value) if is_array(leaf)]


def holds_arrays(value: Any) -> bool:
    return bool(arrays_of(value))


def rows_of(value: Any, start: int, stop: int) -> Any:
    """Rows start … stop − 1 of every tensor.

    >>> import torch
    >>> rows_of({"a": torch.arange(4), "b": (torch.arange(8).view(4, 2), "text")}, 1, 2)
    {'a': tensor([1]), 'b': (tensor([[2, 3]]), 'text')}
    """
    return tree_map_only(Tensor, lambda tensor: tensor[start:stop], value)


def one_row(value: Any, name: str) -> Any:
    """What belongs to one item of a data set, as a loader makes a batch of one of it: numbers become tensors too."""

    def row(leaf: Any) -> Any:
        if is_array(leaf):
            return as_tensor(leaf, repr(name))[None]
        number = as_number(leaf)
        return number[None] if isinstance(number, Tensor) else number

    return tree_map(row, value)


def counts_entries(value: Any, samples: int) -> bool:
    """Whether the entries of a list or tuple are as many as the samples; fields of a named tuple count nothing.

    >>> counts_entries([1.0, 2.0], 2), counts_entries({"a": 1.0, "b": 2.0}, 2)
    (True, False)
    """
    return isinstance(value, list | tuple) and not hasattr(value, "_fields") and len(value) == samples


def with_rows(value: Any, samples: int, name: str, *, collated: bool = False) -> Any:
    """What has a row for each sample, as tensors: a list of so many entries is one tensor, other containers stay.

    All containers stay where the batch is ``collated``: torch keeps the form of an item, and stacks what it holds.
    """
    if isinstance(value, Tensor):
        return value
    if (counts_entries(value, samples) and not collated) or not holds_arrays(value):
        return as_tensor(value, repr(name))
    return tree_map(lambda leaf: as_tensor(leaf, repr(name)) if is_array(leaf) else leaf, value)
