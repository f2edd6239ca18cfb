"""Data that come as one call of the model: a mapping of all samples' inputs, with or without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rankscope._base.errors import DataError, UsageError
from rankscope._base.labels import NO_LABEL
from rankscope.features.batch_labels import may_be_label
from rankscope.slicing.calls import Call, read_call
from rankscope.slicing.meaning import LABELS, How, Meaning
from rankscope.slicing.signature import Signature, signature_of

__all__ = ["WholeCall", "named_inputs", "split_label", "whole_call"]


class WholeCall(Dataset[Call]):
    """All samples as one call, with (N,) labels."""

    def __init__(self, call: Call, labels: Tensor) -> None:
        self.call, self.labels = call, labels

    def __len__(self) -> int:
        return len(self.call)

    def __getitem__(self, index: int) -> Call:
        return self.call.part(index, index + 1)


def named_inputs(inputs: Any) -> Mapping[str, Any] | None:
    """The mapping that ``inputs`` is, or that a tokenizer's BatchEncoding holds; ``None`` for anything else."""
    if isinstance(inputs, Mapping):
        return inputs
    held = getattr(inputs, "data", None)
    return held if isinstance(held, Mapping) else None


def whole_call(model: nn.Module, inputs: Mapping[str, Any], labels: Tensor | None, meaning: Meaning) -> WholeCall:
    """The data set of a mapping; ``labels`` (N,) or ``None`` for none.

    Raises
    ------
    DataError
        For another number of labels than samples, and for no sample.
    """
    call = read_call(model, signature_of(model), dict(inputs), How.GIVEN, meaning, "data")
    if not len(call):
        raise DataError(f"{call.name!r} has shape {tuple(call.x.shape)}, so no readable sample; give one or more")
    if labels is None:
        labels = torch.full((len(call),), NO_LABEL)
    if labels.ndim != 1 or len(labels) != len(call):
        raise DataError(
            f"labels have shape {tuple(labels.shape)} for {len(call)} samples of {call.name!r}; give one per sample"
        )
    return WholeCall(call, labels)


def split_label(inputs: Mapping[str, Any], signature: Signature) -> tuple[dict[str, Any], Any]:
    """A mapping's inputs, and what it holds as a label that ``forward`` does not need; ``None`` for none.

    Raises
    ------
    UsageError
        Where there is none, and something else that ``forward`` does not take could be it.
    """
    name = next((k for k in LABELS if k in inputs and k not in signature.positional[: signature.required]), None)
    if name is not None:
        return {k: v for k, v in inputs.items() if k != name}, inputs[name]
    if not inputs or any(may_be_label(v) for k, v in inputs.items() if not signature.takes(str(k))):
        raise UsageError(
            f"data is a {type(inputs).__name__} of {', '.join(map(str, inputs)) or 'nothing'}, so no label; name it "
            f"one of {', '.join(LABELS)}, or give a pair (inputs, labels), with None for no labels"
        )
    return dict(inputs), None
