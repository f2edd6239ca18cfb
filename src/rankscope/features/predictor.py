"""A head of any kind as one function from features to logits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from rankscope._base.arrays import as_tensor
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, ModelError, UsageError, type_and_line
from rankscope.features.heads import evaluated_copy, find_head, linear_parts, only_its_weights

__all__ = ["Predict", "predictor"]

Predict: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def predictor(head: Any, x: torch.Tensor) -> tuple[Predict, tuple[torch.Tensor, torch.Tensor] | None, torch.dtype]:
    """A function from features to logits, the (weight, bias) of a linear head, and the dtype to compute in."""
    whole = isinstance(head, nn.Module) and not only_its_weights(head)  # all that it does counts
    parts, called, held = None if whole else linear_parts(head, x.shape[1]), head, x.dtype
    if parts is None and isinstance(head, nn.Module):
        trouble: Exception | None = None
        called, held = evaluated_copy(head, x.dtype)
        try:
            made = called(x[:2].to(_device_of(called, x), held))
            taken = isinstance(made, torch.Tensor) and made.ndim == 2 and len(made) == len(x[:2])
        except Exception as error:  # whatever a model raises on what is not its input
            taken, trouble = False, error
        if not taken:  # not a head but a whole model: its last layer is
            try:
                layer = find_head(head)[1]
            except ModelError:
                layer = head
                if trouble is None:
                    raise
            if layer is head:
                raise ModelError(
                    f"the head does not take features of width {x.shape[1]}"
                    + ("" if trouble is None else f": {type_and_line(trouble)}")
                ) from trouble
            return predictor(layer, x)
    if parts is not None:
        dtype = torch.promote_types(parts[0].dtype, x.dtype)
        weight, bias = (part.to(x.device, dtype) for part in parts)
        return (lambda rows: torch.addmm(bias, rows.to(dtype), weight.T)), (weight, bias), dtype
    if not callable(called):
        raise UsageError(f"the head is a {type(head).__name__}; give an nn.Linear, (weight, bias), or a callable")
    place = _device_of(called, x)

    def predict(rows: torch.Tensor) -> torch.Tensor:
        try:
            # rows go to the head: a caller's module is not moved. A copy, as a function may write into what it is given
            made = called(rows.to(place, held, copy=True))
        except Exception as error:  # whatever a caller's function raises
            raise ModelError(
                f"the head fails on {dtype_name(rows.dtype)} features of shape {tuple(rows.shape)}: "
                f"{type_and_line(error)}"
            ) from error
        if isinstance(made, np.ndarray):
            made = as_tensor(made, "what the head returns")
        if not isinstance(made, torch.Tensor) or made.ndim != 2 or len(made) != len(rows):
            shape = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise DataError(f"the head must return logits (samples × classes); for {len(rows)} samples it gave {shape}")
        if made.shape[1] < 2:
            raise DataError(
                f"the head gives {made.shape[1]} number per sample, which may be a logit or a probability; give one "
                "that returns a logit for each of two classes, such as torch.cat([-z, z], 1)"
            )
        if made.is_complex():
            raise DataError(f"the head gives {dtype_name(made.dtype)} logits; give a head whose logits are real")
        return made.to(x.device, torch.promote_types(made.dtype, torch.float32))

    _check_each_sample_alone(predict, x, head)
    return predict, None, held


def _check_each_sample_alone(predict: Predict, x: torch.Tensor, head: Any) -> None:
    """Raise ``ModelError`` for a head whose answer is random, or depends on the other samples of the batch."""
    rows = x[: min(len(x), 256)]
    first, again, alone = predict(rows), predict(rows), predict(rows[:2])
    size = float(first.abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
    for other, why in ((again, "differs from call to call"), (alone, "depends on the other samples of a batch")):
        gap = (first[: len(other)] - other).abs().nan_to_num(0.0)
        if float(gap.max()) > 1e-2 * size:
            raise ModelError(_not_alone(head, why))


def _not_alone(head: Any, why: str) -> str:
    if isinstance(head, nn.Module):
        return (
            f"what the head {type(head).__name__} gives for a sample {why}, in evaluation mode too; give a head whose "
            "forward is not random, keeps no state and treats each sample by itself"
        )
    return (
        f"what the head function gives for a sample {why}; put the modules it calls into evaluation mode "
        "(.eval()), or give the module itself"
    )


def _device_of(head: Any, x: torch.Tensor) -> torch.device:
    """Where a module holds its tensors, also one of buffers alone; of a function nothing is known."""
    held = next(chain(head.parameters(), head.buffers()), None) if isinstance(head, nn.Module) else None
    return x.device if held is None else held.device
