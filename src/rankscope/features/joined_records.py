"""The samples of a run as one batch: numbers stacked, and once what holds none, which a run has the same of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate

from rankscope.slicing.meaning import LABELS
from rankscope.slicing.values import is_array, numbers_of

__all__ = ["holds_no_rows", "joined", "record_of"]


def holds_no_rows(value: Any) -> bool:
    """Whether a value of a record is a text, ``None``, a switch (Python's ``bool``), or a container without arrays: it
    goes to ``forward`` as it is.

    A number, or a list of them, is what a loader stacks.

    >>> [holds_no_rows(value) for value in ("text", None, True, ["a", "b"], {"mode": "a", "scale": 2.0}, 2.0, [1, 2])]
    [True, True, True, True, True, False, False]
    """
    if isinstance(value, bool):
        return True
    if is_array(value) or isinstance(value, int | float | np.number) or numbers_of(value) is not None:
        return False
    return all(leaf is None or isinstance(leaf, str | bytes | int | float) for leaf in tree_leaves(value))


def record_of(item: Any) -> Mapping[str, Any]:
    """The names and values of a sample, which may have its label beside them; none where it has no names."""
    if isinstance(item, tuple | list) and item:
        item = item[0]
    return item if isinstance(item, Mapping) else {}


def joined(items: list[Any]) -> tuple[Any, dict[str, Any]]:
    """Samples as torch's loader joins them, and by name what holds no rows.

    >>> joined([({"x": 1.0, "mode": "a"}, 3), ({"x": 2.0, "mode": "a"}, 4)])
    ([{'x': tensor([1., 2.], dtype=torch.float64)}, tensor([3, 4])], {'mode': 'a'})
    """
    first = record_of(items[0])
    once = {name: value for name, value in first.items() if name not in LABELS and holds_no_rows(value)}
    if not first:
        return default_collate(items), {}
    record = {name: default_collate([record_of(item)[name] for item in items]) for name in first if name not in once}
    record = {name: value if name in LABELS else _as_they_are(first[name], value) for name, value in record.items()}
    if isinstance(items[0], Mapping):
        return record, once
    return [
        record,
        *(default_collate(list(column)) for column in zip(*(item[1:] for item in items), strict=True)),
    ], once


def _as_they_are(one: Any, stacked: Any) -> Any:
    """What a loader stacked, with the texts and switches themselves in place of its lists and tensors of them."""
    if isinstance(one, str | bytes | bool):
        return one
    if not any(isinstance(leaf, str | bytes | bool) for leaf in tree_leaves(one)) or numbers_of(one) is not None:
        return stacked
    if isinstance(one, Mapping):
        return {key: _as_they_are(value, stacked[key]) for key, value in one.items()}
    parts = [_as_they_are(value, part) for value, part in zip(one, stacked, strict=True)]
    return type(one)(*parts) if hasattr(one, "_fields") else parts
