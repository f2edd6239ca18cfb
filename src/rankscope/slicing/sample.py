"""What a model is called with: one differentiable tensor and whatever else the call needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from rankscope._base.errors import is_out_of_memory
from rankscope.slicing.signature import signature_of

__all__ = ["Sample", "call_model"]


@dataclass(frozen=True)
class Sample:
    """One sample (batch dimension of size 1): the tensor that is differentiated, and the rest of the call.

    ``keyword`` is the argument name under which ``x`` is passed; ``None`` means the first positional argument.
    """

    x: Tensor
    name: str
    keyword: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> Sample:
        """The same sample elsewhere; floating tensors take ``dtype``, integer ones keep theirs."""
        return Sample(
            _moved(self.x, device, dtype),
            self.name,
            self.keyword,
            {k: _moved(v, device, dtype) for k, v in self.extra.items()},
        )


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {k: _moved(v, device, dtype) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(v, device, dtype) for v in value)
    return value


_TAKE_GRADIENTS: WeakSet[Any] = WeakSet()  # models whose own forward differentiates, and fails with gradients off


def call_model(model: Any, sample: Sample, x: Tensor, again: Callable[[], Tensor] | None = None) -> Any:
    """Call the model with ``x`` in place of the sample's own tensor.

    With gradients on where its own forward needs them, as that of a force field: it returns the gradient of an energy.
    That shows when a first attempt fails halfway. ``again`` undoes what the attempt has left in hooks, in the model and
    in ``x``, and returns ``x`` as it was.
    """
    if model in _TAKE_GRADIENTS:
        with torch.enable_grad():
            return _called(model, sample, x)
    try:
        return _called(model, sample, x)
    except NotImplementedError:  # an operator without a formula in the mode that is used has none with gradients on
        raise
    except RuntimeError as error:
        if torch.is_grad_enabled() or is_out_of_memory(error):
            raise
        try:
            with torch.enable_grad():
                made = _called(model, sample, x if again is None else again())
        except RuntimeError:
            raise error from None
    _TAKE_GRADIENTS.add(model)
    return made


def _called(model: Any, sample: Sample, x: Tensor) -> Any:
    named = dict(sample.extra)
    placed = [x] if sample.keyword is None else []
    if sample.keyword is not None:
        named[sample.keyword] = x
    if not named:  # most calls; to read a signature takes as long as several layers
        return model(x)
    for name in signature_of(model).by_place[len(placed) :]:  # forward(self, x, /)
        if name not in named:
            break
        placed.append(named.pop(name))
    return model(*placed, **named)
