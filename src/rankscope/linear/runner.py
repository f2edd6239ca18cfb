"""The sub-networks of one model as one function: input tensor in, flattened outputs of every cut point out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import MeasurementError
from rankscope.slicing import (
    CallKey,
    Capture,
    ModelState,
    Sample,
    call_model,
    capture,
    guarded,
    outside_transforms,
    without_casts,
)
from rankscope.slicing.capture import OUTPUT
from rankscope.slicing.grad_mode import StaysOn, recording_through
from rankscope.slicing.members import every_member, flat_rows, members
from rankscope.slicing.memory import values_of

__all__ = ["NotCalledError", "Rows", "Runner"]

Rows = Sequence[Tensor | None] | None
"""For each cut point the flat places of the rows that are wanted, or ``None`` for all; ``None``: all of all."""


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class NotCalledError(MeasurementError):
    """A sample does not call some of the cut points; ``absent`` holds their places among the runner's keys."""

    def __init__(self, name: str, absent: frozenset[int]) -> None:
        super().__init__(
            f"{name!r} was called when the model was traced but not now: the model's path depends on its input; leave "
            "that layer out"
        )
        self.absent = absent


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
        self._places: dict[tuple[str, int], list[int]] = {}  # several where each of a call's tensors is asked for
        for i, key in enumerate(self.keys):
            self._places.setdefault((key.module, key.call), []).append(i)
        self._images = 1
        self._rows: Rows = None  # those of the call under way
        state = guarded(model)
        if state is not None:
            state.restore()  # what the last call left behind is not what the model was given with
        self._state = self._converted()
        self._capture: Capture | None = None
        self._missing = 0
        self._casts = True

    def up_to(self, place: int) -> Runner:
        """The sub-network of one cut point alone; converted weights are shared, and a call ends at its output."""
        one = copy(self)
        key = self.keys[place]
        one.keys, one._places, one._capture = (key,), {(key.module, key.call): [0]}, None
        return one

    def in_dtype(self, dtype: torch.dtype) -> Runner:
        """The same sub-networks in another precision."""
        return Runner(self.model, self.keys, self.device, dtype, through=self.through)

    def _converted(self) -> list[_Converted]:
        """Weights, buffers and plain attributes that have to change."""
        changed = []
        made: dict[Tensor, Tensor] = {}
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        for prefix, module in self.model.named_modules():
            attributes = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
            for held in (module._parameters, module._buffers, attributes):
                for name, tensor in held.items():
                    if tensor is None or (tensor.device == self.device and tensor.dtype == self._wanted(tensor)):
                        continue
                    if held is attributes and tensor.device == self.device and tensor.dtype != own:
                        continue  # a table that the model keeps in a precision of its own, as the code that made it
                    if tensor not in made:
                        made[tensor] = self._convert(tensor)
                    full = f"{prefix}.{name}" if prefix else name
                    owner = module if held is attributes else None
                    changed.append(_Converted(full, name, owner, tensor, made[tensor], _version(made[tensor])))
        return changed

    def _wanted(self, tensor: Tensor) -> torch.dtype:
        if tensor.is_complex():
            return torch.complex128 if self.dtype == torch.float64 else torch.complex64
        return self.dtype if tensor.is_floating_point() else tensor.dtype

    def _convert(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self._wanted(tensor))

    def _renewed(self, state: ModelState | None) -> list[_Converted]:
        """The converted tensors as they are to be before a call: one that a call wrote into is made again."""
        for each in self._state:
            if _version(each.made) != each.version or (state is not None and each.full in state.changed):
                with outside_transforms():
                    fresh = self._convert(each.source)
                    each.made = fresh.clone() if fresh is each.source else fresh
                each.version = _version(each.made)
        return self._state

    def without_casts(self) -> Runner:
        """The same model in float64, also where it casts to lower precision inside."""
        other = copy(self)
        other._casts = False
        other._capture = None  # its hooks are its own, also where this one's are in place
        return other

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks are in place inside; outputs can be asked for. Once is enough: inside, it does nothing more."""
        if self._capture is not None:
            yield
            return
        with capture(self.model, {key.module for key in self.keys if not key.of_network}, self._take) as record:
            self._capture = record
            try:
                with nullcontext() if self._casts else without_casts():
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
            rows = None if self._rows is None else self._rows[place]
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

    def returned(self, sample: Sample, x: Tensor, *, fresh: bool = True) -> Any:
        """What the model returns, computed in the dtype of this runner; ``fresh`` as in ``outputs``."""
        state = guarded(self.model)
        if state is not None and fresh:
            state.restore()
        x = x.clone()  # a model may write into its input, which is the caller's tensor and every later pass's
        model: Any = self.model if not self._state else _Substituted(self.model, self._renewed(state))
        mode = StaysOn() if self.through and torch.is_grad_enabled() else None
        with recording_through(self.model, mode), nullcontext() if state is None else state.paused():
            return call_model(model, sample, x)

    def everything(self, sample: Sample, *, fresh: bool = True) -> list[Tensor]:
        """What a whole call returns and what every cut point returned in it, as flat copies in float64."""
        assert self._capture is not None, "everything() outside hooked()"
        self._images, self._rows = len(sample.x), None
        self._capture.clear()
        self._missing = -1  # no cut point is the last one: the call goes on to its end
        made = self.returned(sample, sample.x, fresh=fresh)
        return values_of([made, list(self._capture.outputs.values())])

    def outputs(self, sample: Sample, x: Tensor, rows: Rows = None, *, fresh: bool = True) -> tuple[Tensor, ...]:
        """Flat outputs of every cut point (or the chosen rows of each), in the order of ``keys``.

        ``fresh`` starts from the model's saved state, not from what the last call left.
        """
        assert self._capture is not None, "outputs() outside hooked()"
        self._images, self._rows = len(x), rows
        self._capture.clear()
        self._missing = len(self._places)
        try:
            made = self.returned(sample, x, fresh=fresh)
            if _WHOLE in self._places:
                self._capture.outputs[_WHOLE] = self._take(_WHOLE, self.model, made)
        except _Enough:
            pass
        found = self._capture.outputs
        absent = [call for call in self._places if call not in found]
        if absent:
            raise NotCalledError(absent[0][0], frozenset(k for call in absent for k in self._places[call]))
        flat: list[Tensor] = [x] * len(self.keys)
        for call, places in self._places.items():
            for place, tensor in zip(places, found[call], strict=True):
                flat[place] = tensor
        return tuple(flat)


_WHOLE = (OUTPUT, -1)


@dataclass
class _Converted:
    """One tensor in the device and dtype asked for; ``owner`` is the module that holds it as a plain attribute."""

    full: str
    name: str
    owner: nn.Module | None
    source: Tensor
    made: Tensor
    version: int


class _Substituted:
    """A model whose parameters, buffers and tensor attributes are replaced for the duration of a call."""

    def __init__(self, model: nn.Module, state: list[_Converted]) -> None:
        self.model, self.state = model, state
        self.forward = model.forward  # which names the arguments

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = {each.full: each.made for each in self.state if each.owner is None}
        for each in self.state:
            if each.owner is not None:
                each.owner.__dict__[each.name] = each.made
        try:
            # the state names tied weights itself: torch's own way leaves a module that stands in two places changed
            return torch.func.functional_call(self.model, tensors, args, kwargs, tie_weights=False)
        finally:
            for each in self.state:
                if each.owner is not None:
                    each.owner.__dict__[each.name] = each.source
