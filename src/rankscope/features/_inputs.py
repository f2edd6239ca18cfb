"""What the analyses accept as features and labels, checked once at the boundary."""

from __future__ import annotations

from typing import Any

import torch

from rankscope._base.arrays import dense
from rankscope._base.errors import DataError, parameter
from rankscope._base.labels import class_indices, refuse_unlabelled
from rankscope._base.text import counted

__all__ = ["as_labels", "as_matrix", "first_bad_row"]


def first_bad_row(rows: torch.Tensor) -> int | None:
    """Index of the first row that holds a NaN or an infinity, or None.

    >>> first_bad_row(torch.tensor([[1.0], [float("nan")]]))
    1
    """
    # x·0 is 0 for finite x alone: one pass without a Boolean copy of the whole matrix
    sums = (rows.reshape(len(rows), -1) * 0).sum(1)
    bad = (sums != 0) | sums.isnan()
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def as_matrix(values: Any, name: str, *, device: torch.device | str | None = None) -> torch.Tensor:
    """(N, d) on ``device`` from a tensor or array; float32, or float64 where there are more digits. Rows are samples.

    Raises
    ------
    DataError
        Not a matrix, no rows, or a NaN or infinite value (its sample is named).
    """
    tensor = dense(values, name)
    if tensor.ndim != 2:
        raise DataError(f"{name} must be a matrix (samples × dimensions); this has shape {tuple(tensor.shape)}")
    if min(tensor.shape) == 0:
        raise DataError(f"{name} is empty: shape {tuple(tensor.shape)}; give at least one sample and one dimension")
    if tensor.is_complex():
        raise DataError(f"{name} is {tensor.dtype}; give real values")
    # float64 features and whole numbers may have digits that float32 would cut off
    wide = tensor.dtype == torch.float64 or not tensor.is_floating_point()
    tensor = tensor.to(device=device, dtype=torch.float64 if wide else torch.float32)
    bad = first_bad_row(tensor)
    if bad is not None:
        raise DataError(
            f"{name}: sample {bad} holds a NaN or infinite value; remove it, or fix the computation behind it"
        )
    return tensor.contiguous()


def as_labels(
    values: Any, samples: int, classes: int | None, *, device: torch.device | str | None = None, balanced: bool = True
) -> torch.Tensor:
    """(N,) int64 labels in 0 … classes − 1, one per sample.

    With ``balanced``, too few samples, an absent class and a single class are errors, as an accuracy over classes that
    never occur answers another question. ``classes`` None takes what occurs.

    Raises
    ------
    DataError
        Whatever of the above does not hold; the message names the label, the sample or the class.
    """
    labels = class_indices(values, samples).to(device)
    refuse_unlabelled(labels)
    count = int(labels.max()) + 1 if classes is None else classes
    outside = ((labels < 0) | (labels >= count)).nonzero().flatten()
    if len(outside):
        sample = int(outside[0])
        raise DataError(
            f"label {int(labels[sample])} of sample {sample} is outside the {count} classes (0 … {count - 1}); "
            f"{len(outside)} such labels in all"
        )
    if balanced:
        seen = torch.bincount(labels, minlength=count)
        if count < 2 or int((seen > 0).sum()) < 2:
            raise DataError("the data hold one class alone; accuracy cannot depend on the features: give two or more")
        if samples < count:
            raise DataError(
                f"{counted(samples, 'sample')} for {counted(count, 'class', 'classes')} are too few; give more samples"
            )
        empty = (seen == 0).nonzero().flatten().tolist()
        if empty:
            shown = ", ".join(map(str, empty[:8])) + (" …" if len(empty) > 8 else "")
            raise DataError(
                f"no sample of class {shown} ({len(empty)} of {count} classes are absent); give samples of every "
                f"class, or {parameter('allow_absent', True)} to count those that occur"
            )
    return labels
