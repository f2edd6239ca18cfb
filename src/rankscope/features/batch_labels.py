"""A batch as its inputs and the labels beside them; what holds no labels has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankscope._base.errors import DataError
from rankscope._base.labels import refuse_texts
from rankscope.slicing.meaning import LABELS
from rankscope.slicing.signature import Signature
from rankscope.slicing.values import as_tensor, is_array, is_scalar_label

__all__ = ["REMEDY", "labels_of", "may_be_label", "refuse_other_names", "without_label"]

REMEDY = (
    "give the data set a transform that makes tensors (for images: ToTensor and a fixed size; for records of a Hugging "
    "Face data set: with_transform), and labels"
)


def without_label(content: Any, signature: Signature) -> tuple[Any, Tensor | None]:
    """A batch as its inputs, and the labels beside them; ``None`` where there are none.

    Of a sequence the first members are what ``forward`` needs, and the next is the label.

    Raises
    ------
    DataError
        For what holds no tensors, and where several members hold one integer or text a sample: (image, index, label)
        and (image, label, index) look alike.
    """
    if isinstance(getattr(content, "data", None), Mapping):
        content = content.data
    if isinstance(content, Mapping):
        name = next((k for k in LABELS if k in content), None)
        rest = {k: v for k, v in content.items() if k != name}
        if not rest:
            held = ", ".join(map(str, content)) or "nothing"
            raise DataError(f"records hold {held}, so no input that the model takes; {REMEDY}")
        return rest, None if name is None else labels_of(content[name])
    if is_array(content):
        return content, None
    place = max(1, signature.required)
    if isinstance(content, tuple | list) and content and isinstance(content[0], Mapping):
        place = 1
    if not isinstance(content, tuple | list) or not content:
        raise DataError(f"a batch is a {type(content).__name__}, not a pair of tensors (inputs, labels); {REMEDY}")
    inputs = content[0] if place == 1 else tuple(content[:place])
    if not isinstance(inputs, tuple | Mapping) and not is_array(inputs):
        raise DataError(f"a batch holds a {type(inputs).__name__}, not a tensor, as its inputs; {REMEDY}")
    either = [str(k + 1) for k in range(place, len(content)) if may_be_label(content[k])]
    if len(either) > 1:
        raise DataError(
            f"items {' and '.join(either)} of each sample hold one integer or text each, so either may be the label; "
            "give (input, label), or a mapping of names with the label under 'label'"
        )
    return inputs, labels_of(content[place]) if len(content) > place else None


def may_be_label(value: Any) -> bool:
    """Whether a value holds one integer or text a sample, whatever its name is."""
    if isinstance(value, Tensor):
        return value.ndim == 1 and not value.is_floating_point() and not value.is_complex()
    if is_array(value):
        return len(value.shape) == 1 and not np.issubdtype(np.asarray(value[:0]).dtype, np.inexact)
    return isinstance(value, list | tuple) and bool(value) and all(map(is_scalar_label, value))


def labels_of(values: Any) -> Tensor:
    """One class index per sample, as a tensor."""
    refuse_texts(values)
    if isinstance(values, list | tuple) and values and all(map(is_scalar_label, values)):
        return torch.tensor([int(v) for v in values])
    return as_tensor(values, "labels")


def refuse_other_names(record: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Refuse a record without a label that holds one integer or text beside its inputs: it may be the label."""
    other = [str(k) for k, v in record.items() if str(k) not in inputs and is_scalar_label(v)]
    if other:
        raise DataError(
            f"records hold {', '.join(map(str, record))}, so no label; name it one of {', '.join(LABELS)}, or leave "
            f"{other[0]!r} out if there are no labels"
        )
