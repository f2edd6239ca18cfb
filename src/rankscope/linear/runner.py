"""The sub-networks of one model as one function: input tensor in, flattened outputs of every cut point out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import MeasurementError
from rankscope.linear.substituted import Converted
from rankscope.slicing import (
    CallKey,
    Capture,
    Sample,
    call_model,
    capture,
    guarded,
    without_casts,
)
from rankscope.slicing.capture import OUTPUT
from rankscope.slicing.grad_mode import StaysOn, recording_through
from rankscope.slicing.members import every_member, flat_rows, members
from rankscope.slicing.memory import values_of

__all__ = ["NotCalledError", "Rows", "Runner"]

Rows = Sequence[Tensor | None] | None
"""For each cut point the flat places of the rows that are wanted, or ``None`` for all; ``None``: all of all."""


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
    copies take their place for the duration of each call. ``room`` are the bytes that those may take; where they are
    more, large weights are converted for one operator at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        keys: Sequence[CallKey],
        device: torch.device,
        dtype: torch.dtype,
        *,
        through: bool = False,
        room: int | None = None,
    ) -> None:
        self.model, self.device, self.dtype, self.room = model, device, dtype, room
        self.keys = tuple(keys)
        self.through = through  # whether reverse mode has to go through ``torch.no_grad`` inside the model
        self._places: dict[tuple[str, int], list[int]] = {}  # several where each of a call's tensors is asked for
        for i, key in enumerate(self.keys):
            self._places.setdefault((key.module, key.call), []).append(i)
        self._images = 1
        self._rows: Rows = None  # those of the call under way
        state = guarded(model)
        if state is not None:
            state.restore(call=False)  # what the last call left behind is not what the model was given with
        self.weights = Converted(model, device, dtype, room)
        self._capture: Capture | None = None
        self._awaited = self._missing = 0  # calls whose outputs are asked for, and those still to come
        self._casts = True

    def up_to(self, place: int) -> Runner:
        """The sub-network of one cut point alone; converted weights are shared, and a call ends at its output."""
        one = copy(self)
        key = self.keys[place]
        one.keys, one._places, one._capture = (key,), {(key.module, key.call): [0]}, None
        return one

    def in_dtype(self, dtype: torch.dtype) -> Runner:
        """The same sub-networks in another precision."""
        return Runner(self.model, self.keys, self.device, dtype, through=self.through, room=self.room)

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

        def begun() -> Tensor:
            self._begin()
            if state is not None and fresh:
                state.restore()
            if self.weights:
                self.weights.renew(state)
            return x.clone()  # a model may write into its input, which is the caller's tensor and every later pass's

        given = begun()
        model: Any = self.weights or self.model
        mode = StaysOn() if self.through and torch.is_grad_enabled() else None
        with recording_through(self.model, mode), nullcontext() if state is None else state.paused():
            return call_model(model, sample, given, begun)

    def _begin(self) -> None:
        """Hooks count calls from the first again, also where a call is made a second time."""
        self._missing = self._awaited
        if self._capture is not None:
            self._capture.clear()

    def everything(self, sample: Sample, *, fresh: bool = True) -> list[Tensor]:
        """What a whole call returns and what every cut point returned in it, as flat copies in float64."""
        assert self._capture is not None, "everything() outside hooked()"
        self._images, self._rows = len(sample.x), None
        self._awaited = -1  # no cut point is the last one: the call goes on to its end
        made = self.returned(sample, sample.x, fresh=fresh)
        return values_of([made, list(self._capture.outputs.values())])

    def outputs(self, sample: Sample, x: Tensor, rows: Rows = None, *, fresh: bool = True) -> tuple[Tensor, ...]:
        """Flat outputs of every cut point (or the chosen rows of each), in the order of ``keys``.

        ``fresh`` starts from the model's saved state, not from what the last call left.
        """
        assert self._capture is not None, "outputs() outside hooked()"
        self._images, self._rows = len(x), rows
        self._awaited = len(self._places)
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
