"""Samples in a row that have the same shapes, texts and switches: they can share a batch, and others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rankscope.features.joined_records import holds_no_rows, record_of
from rankscope.slicing.meaning import LABELS
from rankscope.slicing.values import is_array, numbers_of

__all__ = ["runs_of_one_shape"]


def runs_of_one_shape(items: list[tuple[int, Any]]) -> list[list[tuple[int, Any]]]:
    """Items (index, sample) in their order, cut where a shape, a text or a switch changes.

    >>> from torch import zeros
    >>> runs = runs_of_one_shape([(0, zeros(2)), (1, zeros(2)), (2, zeros(3)), (3, zeros(2))])
    >>> [[index for index, _ in run] for run in runs]
    [[0, 1], [2], [3]]
    """
    return [list(run) for _, run in groupby(items, key=lambda item: _form(item[1]))]


def _form(item: Any) -> Any:
    """Of a sample; its own record holds rows, whatever stands in it, and what follows its input is its label."""
    if isinstance(item, tuple | list) and item and numbers_of(item) is None:
        return (_form(item[0]) if record_of(item) else _shape(item[0]), *map(_of_label, item[1:]))
    return _of_names(item) if isinstance(item, Mapping) else _shape(item)


def _of_label(value: Any) -> Any:
    """Classes do not cut a run, nor does a label that is true or false."""
    return None if isinstance(value, bool) else _shape(value)


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
    return tuple((str(key), _of_label(value) if key in LABELS else _shape(value)) for key, value in record.items())
