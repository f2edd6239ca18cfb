"""The sub-networks of one model as one function: input tensor in, flattened outputs of every cut point out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import MeasurementError
from rankscope.slicing import CallKey, Capture, Sample, call_model, capture
from rankscope.slicing.capture import OUTPUT
from rankscope.slicing.grad_mode import StaysOn, recording_through
from rankscope.slicing.members import every_member, flat_rows, members

__all__ = ["Runner"]


class _Enough(BaseException):
    """Raised by the last hook: what follows the last cut point need not be computed."""


class Runner:
    """Calls a model and collects the outputs of the chosen module calls.

    The model's own parameters are never moved or converted: where another device or dtype is asked for, converted
    copies take their place for the duration of each call.
    """

    def __init__(
        self,
        model: nn.Module,
        keys: Sequence[CallKey],
        device: torch.device,
        dtype: torch.dtype,
        *,
        through: bool = False,
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.keys = tuple(keys)
        self.through = through  # whether reverse mode has to go through ``torch.no_grad`` inside the model
        self.rows: list[Tensor | None] = [None] * len(self.keys)
        self._places: dict[tuple[str, int], list[int]] = {}  # several where each of a call's tensors is asked for
        for i, key in enumerate(self.keys):
            self._places.setdefault((key.module, key.call), []).append(i)
        self._images = 1
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
        with capture(self.model, {key.module for key in self.keys if not key.of_network}, self._take) as record:
            self._capture = record
            try:
                yield
            finally:
                self._capture = None

    def _take(self, key: tuple[str, int], module: Any, output: Any) -> list[Tensor] | None:
        places = self._places.get(key)
        if places is None:
            return None
        kept = []
        for place in places:
            flat = self._flat(self.keys[place], output)
            rows = self.rows[place]
            # always a copy: an in-place operation that follows would change what the hook saw
            kept.append(flat.clone() if rows is None else flat.index_select(0, rows))
        self._missing -= 1
        if self._missing == 0:
            assert self._capture is not None
            self._capture.outputs[key] = kept
            raise _Enough
        return kept

    def _flat(self, key: CallKey, output: Any) -> Tensor:
        tensors = every_member(output)
        paths = tuple(members(output)) if key.parts is None else key.parts
        absent = [path for path in paths if path not in tensors]
        if absent or not paths:
            what = f"tensor {absent[0]!r}" if absent else "tensor"
            raise MeasurementError(
                f"{key.module!r} returned no {what} now, as it did when the model was traced: the model's path depends "
                "on its input; leave that layer out"
            )
        flat = flat_rows([tensors[path] for path in paths], self._images)
        if flat.is_meta:
            raise MeasurementError(f"{key.module!r} returns a tensor on the meta device, which holds no values")
        return flat.to(self.device)

    def outputs(self, sample: Sample, x: Tensor) -> tuple[Tensor, ...]:
        """Flat outputs of every cut point (or of the rows chosen in ``rows``), in the order of ``keys``."""
        assert self._capture is not None, "outputs() outside hooked()"
        self._images = len(x)
        x = x.clone()  # a model may write into its input, which is the caller's tensor and every later pass's
        self._capture.clear()
        self._missing = len(self._places)
        model: Any = self.model if self._state is None else _Substituted(self.model, self._state)
        mode = StaysOn() if self.through and torch.is_grad_enabled() else None
        try:
            with recording_through(self.model, mode):
                made = call_model(model, sample, x)
            if _WHOLE in self._places:
                self._capture.outputs[_WHOLE] = self._take(_WHOLE, self.model, made)
        except _Enough:
            pass
        found = self._capture.outputs
        absent = [name for name, index in self._places if (name, index) not in found]
        if absent:
            raise MeasurementError(
                f"{absent[0]!r} was called when the model was traced but not now: the model's path depends on its "
                "input; leave that layer out"
            )
        flat: list[Tensor] = [x] * len(self.keys)
        for call, places in self._places.items():
            for place, tensor in zip(places, found[call], strict=True):
                flat[place] = tensor
        return tuple(flat)


_WHOLE = (OUTPUT, -1)


class _Substituted:
    """A model whose parameters are replaced for the duration of a call."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        self.model, self.state = model, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # the state names tied weights itself: torch's own way leaves a module that stands in two places changed
        return torch.func.functional_call(self.model, self.state, args, kwargs, tie_weights=False)
