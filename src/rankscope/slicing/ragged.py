"""Samples of unequal lengths in one mapping, as a tokenizer without padding leaves them: one sample per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from rankscope._base.errors import DataError, UsageError
from rankscope.slicing.belonging import either_way, refuse_two_readings
from rankscope.slicing.meaning import BESIDE, LABELS, MAIN, Meaning
from rankscope.slicing.signature import is_hugging_face, signature_of
from rankscope.slicing.values import is_array, numbers_of

__all__ = ["Rows", "rows_apart"]


class Rows:
    """A data set of mappings: row i of each input that has rows, and all of every other."""

    def __init__(self, own: Mapping[str, Any], shared: Mapping[str, Any], count: int) -> None:
        self.own, self.shared, self.count = dict(own), dict(shared), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {**self.shared, **{name: rows[index] for name, rows in self.own.items()}}


def rows_apart(model: nn.Module, inputs: Any, meaning: Meaning) -> Any:
    """``inputs`` as they are, or as ``Rows`` where a mapping holds lists of numbers of unequal lengths.

    Raises
    ------
    DataError
        Where two inputs have another number of rows.
    UsageError
        Where an input could belong to every row or to each.
    """
    content = inputs if isinstance(inputs, Mapping) else getattr(inputs, "data", None)
    if is_array(inputs) or not isinstance(content, Mapping):
        return inputs
    values = {str(k): v for k, v in content.items()}
    ragged = [name for name, value in values.items() if name not in meaning.shared and _is_ragged(value)]
    if is_hugging_face(model):
        main: tuple[str, ...] = MAIN
    else:  # what forward takes first, or what the caller named: another list of lists may mean anything
        main = (meaning.differentiate or next(iter(signature_of(model).positional), ""),)
    counted = next((name for name in ragged if name in main), None)
    if counted is None:
        return inputs
    count = len(values[counted])
    own = {name: v for name, v in values.items() if _has_rows(model, name, v, counted, count, ragged, meaning)}
    for name, rows in own.items():
        if name in meaning.per_sample:
            refuse_two_readings(name, rows, count, counted)
        if len(rows) != count:
            raise DataError(f"{name!r} has {len(rows)} rows and {counted!r} has {count}; give one row per sample")
    return Rows(own, {k: v for k, v in values.items() if k not in own}, count)


def _is_ragged(value: Any) -> bool:
    """Whether a list holds lists of numbers, each of one shape of its own, and not all of the same."""
    if not isinstance(value, list | tuple) or len(value) < 2 or any(map(is_array, value)):
        return False
    parts = [numbers_of(part) for part in value]
    shapes = [None if part is None else tuple(part.shape) for part in parts]
    return None not in shapes and () not in shapes and len(set(shapes)) > 1


def _has_rows(
    model: nn.Module, name: str, value: Any, counted: str, count: int, ragged: list[str], meaning: Meaning
) -> bool:
    if name in meaning.shared:
        return False
    if name in ragged or name in meaning.per_sample or name in LABELS:
        return hasattr(value, "__len__")
    if is_hugging_face(model) and name in (*MAIN, *BESIDE):
        return hasattr(value, "__len__")
    length = len(value) if isinstance(value, list | tuple) or (is_array(value) and len(value.shape)) else None
    if length == count:
        raise UsageError(either_way(name, f"holds {count} rows", count, counted))
    return False
