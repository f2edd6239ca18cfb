"""The sub-networks of one model as one function: input tensor in, flattened outputs of every cut point out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import MeasurementError
from rankscope.slicing import CallKey, Capture, Sample, call_model, capture

__all__ = ["Runner"]


class _Enough(BaseException):
    """Raised by the last hook: what follows the last cut point need not be computed."""


class Runner:
    """Calls a model and collects the outputs of the chosen module calls.

    The model's own parameters are never moved or converted: where another device or dtype is asked for, converted
    copies take their place for the duration of each call.
    """

    def __init__(self, model: nn.Module, keys: Sequence[CallKey], device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.keys, self.device, self.dtype = model, tuple(keys), device, dtype
        self.rows: list[Tensor | None] = [None] * len(self.keys)
        self._place = {key: i for i, key in enumerate(self.keys)}
        self._state = self._converted()
        self._capture: Capture | None = None
        self._missing = 0

    def _converted(self) -> dict[str, Tensor] | None:
        """Weights and buffers that have to change, under one name for each module that holds them."""
        changed = {}
        made: dict[Tensor, Tensor] = {}
        for prefix, module in self.model.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
                if tensor.device != self.device or tensor.dtype != dtype:
                    if tensor not in made:
                        made[tensor] = tensor.detach().to(self.device, dtype)
                    changed[f"{prefix}.{name}" if prefix else name] = made[tensor]
        return changed or None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks are in place inside; outputs can be asked for."""
        with capture(self.model, {name for name, _ in self.keys}, self._take) as record:
            self._capture = record
            try:
                yield
            finally:
                self._capture = None

    def _take(self, key: CallKey, module: nn.Module, tensor: Tensor) -> Tensor | None:
        place = self._place.get(key)
        if place is None:
            return None
        flat = tensor.reshape(-1)
        rows = self.rows[place]
        # always a copy: an in-place operation that follows would change what the hook saw
        kept = flat.clone() if rows is None else flat.index_select(0, rows)
        self._missing -= 1
        if self._missing == 0:
            assert self._capture is not None
            self._capture.outputs[key] = kept
            raise _Enough
        return kept

    def outputs(self, sample: Sample, x: Tensor) -> tuple[Tensor, ...]:
        """Flat outputs of every cut point (or of the rows chosen in ``rows``), in the order of ``keys``."""
        assert self._capture is not None, "outputs() outside hooked()"
        x = x.clone()  # a model may write into its input, which is the caller's tensor and every later pass's
        self._capture.clear()
        self._missing = len(self.keys)
        try:
            if self._state is None:
                call_model(self.model, sample, x)
            else:
                call_model(_Substituted(self.model, self._state), sample, x)
        except _Enough:
            pass
        found = self._capture.outputs
        absent = [name for name, index in self.keys if (name, index) not in found]
        if absent:
            raise MeasurementError(
                f"{absent[0]!r} was called when the model was traced but not now: the model's path depends on its "
                "input; leave that layer out"
            )
        return tuple(found[key] for key in self.keys)


class _Substituted:
    """A model whose parameters are replaced for the duration of a call."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        self.model, self.state = model, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # the state names tied weights itself: torch's own way leaves a module that stands in two places changed
        return torch.func.functional_call(self.model, self.state, args, kwargs, tie_weights=False)
