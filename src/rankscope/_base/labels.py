"""Class indices from what people hand over as labels: one rule for every measure that takes some.

A sample without a class has -1 in place of its index. What compares classes refuses such samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankscope._base.arrays import dense
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError

__all__ = ["NO_LABEL", "class_indices", "refuse_texts", "refuse_unlabelled"]

NO_LABEL = -1  # in place of a label where there are none; no class has this index


def class_indices(values: Any, samples: int | None = None, *, name: str = "labels") -> Tensor:
    """(N,) int64 of integers of any kind; Booleans are the classes 0 and 1.

    Parameters
    ----------
    samples : int, optional
        How many labels there must be.

    Raises
    ------
    DataError
        Text, fractions, whole numbers as floats, another shape; the message names the remedy where there is one.

    >>> class_indices([True, False])
    tensor([1, 0])
    """
    refuse_texts(values, name)
    found = dense(values, name)
    if found.ndim != 1 or found.is_floating_point() or found.is_complex():
        raise DataError(
            f"{name} are {dtype_name(found.dtype)} of shape {tuple(found.shape)}; give one integer per sample"
            + _remedy(found, len(found) if samples is None and found.ndim else samples)
        )
    if samples is not None and len(found) != samples:
        raise DataError(f"{len(found):,} {name} for {samples:,} samples; give one label per sample")
    whole = found.to(torch.int64)
    if found.dtype == torch.uint64 and bool((whole < 0).any()):  # beyond int64, where they would wrap around
        raise DataError(f"{name} exceed {2**63 - 1}; give class indices from 0")
    return whole


def refuse_unlabelled(labels: Tensor) -> None:
    """Raise ``DataError`` where samples have no class, for what needs one of each.

    >>> refuse_unlabelled(torch.tensor([0, 2]))
    """
    found = (labels == NO_LABEL).nonzero().flatten()
    without, count = len(found), len(labels)
    if not without:
        return
    rest = "leave these samples out" if without < count else "give one class index per sample"
    if labels.unique().tolist() == [-1, 1]:
        rest += " (where -1 and 1 are two classes: labels > 0)"
    raise DataError(
        f"{without:,} of {count:,} samples have no class (label {NO_LABEL}, first of sample {int(found[0])}), "
        f"and each needs one; {rest}"
    )


def refuse_texts(values: Any, name: str = "labels") -> None:
    """Raise ``DataError`` for names of classes: which output of the head belongs to each is not in them."""
    if isinstance(values, Tensor):
        return
    if isinstance(values, list | tuple):
        text = next((v for v in values if isinstance(v, str | bytes)), None)
    else:
        array = np.asarray(values)
        text = next(iter(array.flat), None) if array.dtype.kind in "USO" else None
    if isinstance(text, str | bytes):
        raise DataError(
            f"{name} are text ({text if isinstance(text, bytes) else str(text)!r}); give class indices in the order of "
            "the head's outputs: one integer per sample"
        )


def _remedy(labels: Tensor, samples: int | None) -> str:
    """How labels of that kind become class indices, where there is one way."""
    if labels.ndim == 2 and labels.shape == (samples, 1):
        return " (labels[:, 0])"
    if labels.ndim == 2:
        return " (of one-hot labels labels.argmax(1))"
    return " (labels.long() of whole numbers)" if labels.is_floating_point() and labels.ndim == 1 else ""
