"""Calls of several samples, for what only runs a model forward: read by the one reader, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.data import DataLoader

from rankscope._base.errors import DataError, RankscopeError, is_out_of_memory
from rankscope.slicing.calls import Call
from rankscope.slicing.meaning import Meaning
from rankscope.slicing.one_sample import call_failed
from rankscope.slicing.ragged import rows_apart
from rankscope.slicing.reader import is_one_call, length_of, order_of, read_calls
from rankscope.slicing.sample import Sample, call_model
from rankscope.slicing.shared_values import same_value
from rankscope.slicing.values import is_array

__all__ = ["Batches", "dtype_of_inputs", "mapped", "run_forward", "same_values", "turned"]

_FORWARD = Meaning(floating=False)


class Batches(Iterator[Call]):
    """Calls of at most ``batch_size`` samples; the batches of a loader stay as they are.

    ``total`` is the number of samples where that is known before; ``call`` is the first call that was read.
    """

    def __init__(self, model: nn.Module, inputs: Any, batch_size: int, meaning: Meaning = _FORWARD) -> None:
        self.call: Call | None = None
        inputs = rows_apart(model, inputs, meaning)
        self.total = _length(inputs)
        self._calls = self._read(model, inputs, batch_size, meaning)

    def __next__(self) -> Call:
        return next(self._calls)

    def _read(self, model: nn.Module, inputs: Any, batch_size: int, meaning: Meaning) -> Iterator[Call]:
        whole, loader = is_one_call(inputs), isinstance(inputs, DataLoader)
        waiting: list[Call] = []
        held = 0
        for call in read_calls(model, inputs, meaning):
            if self.call is None and len(call):
                self.call = call
                if whole and self.total is None:
                    self.total = len(call)
            if whole or len(call) > batch_size:
                rows = [] if loader else _split(call, batch_size)
                yield from rows or ([call] if len(call) else [])
                continue
            if waiting and (loader or held + len(call) > batch_size or not _alike(waiting[0], call)):
                yield _joined(waiting)
                waiting, held = [], 0
            if len(call):
                waiting.append(call)
                held += len(call)
        if waiting:
            yield _joined(waiting)
        if self.call is None:
            shape = f" (shape {tuple(inputs.shape)})" if is_array(inputs) else ""
            raise DataError(f"there is no sample to measure: the input is empty{shape}")


def _length(inputs: Any) -> int | None:
    if isinstance(inputs, DataLoader):
        order = order_of(inputs)
        return None if order is None else len(order)
    return length_of(inputs)


def _split(call: Call, size: int) -> list[Call]:
    return [call.part(a, a + size) for a in range(0, len(call), size)]


def _alike(a: Call, b: Call) -> bool:
    """Whether two calls can be one: the same shapes and dtypes, and the same shared values."""
    if (a.name, a.keyword) != (b.name, b.keyword) or a.per_sample.keys() != b.per_sample.keys():
        return False
    (left, form), (right, other) = (tree_flatten(dict(call.per_sample)) for call in (a, b))
    if form != other or not all(map(_can_be_joined, [a.x, *left], [b.x, *right])):
        return False
    return a.shared.keys() == b.shared.keys() and all(same_value(v, b.shared[k]) for k, v in a.shared.items())


def _can_be_joined(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape[1:] == b.shape[1:] and a.dtype == b.dtype
    return same_value(a, b)


def _joined(calls: list[Call]) -> Call:
    first = calls[0]
    if len(calls) == 1:
        return first
    own = tree_map(_cat, *(dict(call.per_sample) for call in calls))
    return replace(first, x=torch.cat([call.x for call in calls]), per_sample=own)


def _cat(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def turned(call: Call) -> Call:
    """The call with its first sample behind the others."""
    return _joined([call.part(1, len(call)), call.part(0, 1)])


def mapped(call: Call, change: Callable[[Tensor], Tensor]) -> Call:
    """The call with each of its tensors changed."""
    shared = {k: change(v) if isinstance(v, Tensor) else v for k, v in call.shared.items()}
    own = tree_map_only(Tensor, change, dict(call.per_sample))
    return replace(call, x=change(call.x), per_sample=own, shared=shared)


def same_values(a: Call, b: Call) -> bool:
    """Whether two calls hold the same tensors."""
    return same_value(a.x, b.x) and same_value(dict(a.per_sample), dict(b.per_sample))


def dtype_of_inputs(model: nn.Module, x: Tensor) -> torch.dtype:
    """The floating dtype that ``model`` computes in: that of its first floating parameter; without any, that of ``x``.

    >>> dtype_of_inputs(nn.Linear(2, 2).double(), torch.zeros(1, 2))
    torch.float64
    """
    own = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), own)


def run_forward(model: nn.Module, sample: Sample, device: torch.device) -> Any:
    """What the model returns for ``sample``, on ``device`` and in the dtype that the model computes in.

    Raises
    ------
    CallFailedError
        Where the model itself raises: the message has the shape and dtype that it was given.
    """
    moved = sample.to(device, dtype_of_inputs(model, sample.x))
    try:
        return call_model(model, moved, moved.x)
    except RankscopeError:
        raise
    except Exception as error:  # whatever a model's own code raises
        if is_out_of_memory(error):
            raise
        given = f"{moved.x.dtype} inputs of shape {tuple(moved.x.shape)}{_beside(moved.extra)}"
        raise call_failed(model, f"{type(model).__name__} does not take {given}", moved, error) from error


def _beside(extra: Mapping[str, Any]) -> str:
    return f" with {', '.join(extra)}" if extra else ""
