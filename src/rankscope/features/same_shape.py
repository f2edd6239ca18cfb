"""Samples in a row that have the same shapes and texts: they can share a batch, and others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rankscope.features.joined_records import holds_no_rows, record_of
from rankscope.slicing.values import is_array, numbers_of

__all__ = ["runs_of_one_shape"]


def runs_of_one_shape(items: list[tuple[int, Any]]) -> list[list[tuple[int, Any]]]:
    """Items (index, sample) in their order, cut where a shape or a text changes.

    >>> from torch import zeros
    >>> runs = runs_of_one_shape([(0, zeros(2)), (1, zeros(2)), (2, zeros(3)), (3, zeros(2))])
    >>> [[index for index, _ in run] for run in runs]
    [[0, 1], [2], [3]]
    """
    return [list(run) for _, run in groupby(items, key=lambda item: _form(item[1]))]


def _form(item: Any) -> Any:
    """Of a sample; its own record holds rows, whatever stands in it."""
    if isinstance(item, tuple | list) and record_of(item):
        return tuple(map(_form, item))
    return _of_names(item) if isinstance(item, Mapping) else _shape(item)


def _shape(item: Any) -> Any:
    if is_array(item):
        return tuple(item.shape)
    numbers = numbers_of(item)
    if numbers is not None:
        return tuple(numbers.shape)
    if holds_no_rows(item):
        return repr(item)
    if isinstance(item, Mapping):
        return _of_names(item)
    return tuple(map(_shape, item)) if isinstance(item, tuple | list) else None


def _of_names(record: Mapping[str, Any]) -> Any:
    return tuple((str(key), _shape(value)) for key, value in record.items())
