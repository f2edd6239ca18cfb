"""Which inputs of a call belong to its samples, and which to all of them: by rule, refused where both could be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rankscope._base.errors import UsageError
from rankscope.slicing.containers import arrays_of, counts_entries, holds_arrays
from rankscope.slicing.meaning import BESIDE, LABELS, MAIN, NOT_BATCHED, How, Meaning
from rankscope.slicing.signature import is_hugging_face

__all__ = ["belongs_to_samples", "either_way", "refuse_two_readings", "same_for_all"]


def belongs_to_samples(
    model: nn.Module, name: str, value: Any, x: Tensor, counted: str, how: How, meaning: Meaning
) -> bool:
    """Whether rows of ``value`` belong to the samples, by rule: refused where both could be."""
    samples = len(x)
    if how is How.COLLATED and holds_arrays(value):
        _refuse_other_texts(name, value)
    if name in meaning.per_sample:
        if how is How.GIVEN:
            refuse_two_readings(name, value, samples, counted)
        wrong = _without_rows(value, samples, how)
        if wrong:
            raise UsageError(f"per_sample names {name!r}, which {wrong} beside {samples} samples of {counted!r}")
        return True
    if how is How.COLLATED and samples > 1 and not isinstance(value, Tensor) and holds_arrays(value):
        return not _without_rows(value, samples, how)
    if not isinstance(value, Tensor):
        if _holds_rows(value, samples):
            raise UsageError(either_way(name, f"holds {samples} values or tensors of so many rows", samples, counted))
        return False
    if value.ndim == 0 or samples == 1:
        return False  # of one sample everything is its own and shared alike
    if how is How.COLLATED:
        return len(value) == samples
    if len(value) != samples:
        if value.ndim > 2 and value.shape[1] == samples:  # states of recurrent layers: (layers, samples, width)
            raise UsageError(either_way(name, f"has shape {tuple(value.shape)}", samples, counted, transposed=True))
        return False
    if name in LABELS and (value.ndim == 1 or value.numel() == samples):
        return True
    if is_hugging_face(model) and name in (*MAIN, *BESIDE) and name not in NOT_BATCHED:
        return True
    same = value.shape == x.shape[:2] and samples != x.shape[1]
    if same and name in ("attention_mask", "token_type_ids", "position_ids"):
        return True
    raise UsageError(either_way(name, f"has shape {tuple(value.shape)}", samples, counted))


def refuse_two_readings(name: str, value: Any, samples: int, counted: str) -> None:
    """Refuse a list of one entry for each sample, each of whose tensors has a row for each sample too.

    Raises
    ------
    UsageError
        For such a list; the message names the spelling of each reading.
    """
    arrays = arrays_of(value)
    if counts_entries(value, samples) and arrays and all(tuple(array.shape[:1]) == (samples,) for array in arrays):
        raise UsageError(
            f"per_sample names {name!r}, a {type(value).__name__} of {samples} entries whose tensors have {samples} "
            f"rows, beside {samples} samples of {counted!r}, so its entries or their rows could count the samples: "
            "give one tensor (torch.stack) if each sample has an entry, or a DataLoader of items "
            f'{{"{counted}": ..., "{name}": ...}} if each sample has a row of every tensor'
        )


def _refuse_other_texts(name: str, value: Any) -> None:
    """Refuse texts beside tensors that differ between the samples: torch leaves a list of them, which has no rows."""
    for texts in tree_leaves(value, is_leaf=_is_texts):
        if _is_texts(texts) and len(set(texts)) > 1:
            raise UsageError(
                f"{name!r} holds texts that differ between the samples of a batch ({texts[0]!r} first); give batches "
                "of one sample (batch_size=1)"
            )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str | bytes) for one in value)


def _without_rows(value: Any, samples: int, how: How) -> str:
    """What a value has in place of a row for each sample; empty where it has one."""
    if isinstance(value, Tensor):
        return "" if value.ndim and len(value) == samples else f"has shape {tuple(value.shape)}"
    if how is not How.COLLATED and counts_entries(value, samples):
        return ""
    shapes = [tuple(array.shape) for array in arrays_of(value)]
    other = next((shape for shape in shapes if shape[:1] != (samples,)), None)
    if other is not None:
        return f"holds a tensor of shape {other}"
    return "" if shapes else f"is a {type(value).__name__} without a tensor"


def _holds_rows(value: Any, samples: int) -> bool:
    """Whether a list or mapping could hold something for each of several samples."""
    if samples == 1 or not isinstance(value, list | tuple | Mapping):
        return False
    members = list(value.values()) if isinstance(value, Mapping) else list(value)
    if any(isinstance(m, Tensor) and m.ndim and samples in m.shape[:2] for m in members):
        return True
    return isinstance(value, list | tuple) and len(value) == samples


def either_way(name: str, what: str, samples: int, counted: str, *, transposed: bool = False) -> str:
    own = f'per_sample=("{name}",) if each sample has its own row'
    if transposed:
        own = "one sample at a time if its second dimension counts samples"
    return (
        f"{name!r} {what} beside {samples} samples of {counted!r}, so it could belong to all of them or to each: give "
        f'shared=("{name}",) if every sample is called with all of it, or {own}'
    )


def same_for_all(name: str, value: Any) -> Any:
    """What a loader put together, once for each sample, as the one value that they share: of texts it makes a list.

    Raises
    ------
    UsageError
        Where the samples' values differ.
    """
    if _is_texts(value):
        differs = any(text != value[0] for text in value[1:])
    elif isinstance(value, Tensor):
        if not value.ndim or not len(value):
            return value
        differs = any(not torch.equal(row, value[0]) for row in value[1:])
    else:

        def of_one(part: Any) -> Any:
            return same_for_all(name, part) if _is_collated(part) else part

        return tree_map(of_one, value, is_leaf=_is_collated)
    if differs:
        raise UsageError(
            f"shared names {name!r}, which differs between the samples of a batch; "
            f'give per_sample=("{name}",) if each sample has its own'
        )
    return value[0]


def _is_collated(value: Any) -> bool:
    return isinstance(value, Tensor) or _is_texts(value)
