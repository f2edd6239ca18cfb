"""Features of the batches that a model is trained on: forward hooks that exist in monitored steps alone.

What a hook does changes nothing that training sees: it reads a detached output, draws no random number and writes
nowhere but into the monitor's own float64 moments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import DataError, RankscopeError, type_and_line
from rankscope._base.world import group_size
from rankscope.features.feature_profile import LayerFeatures
from rankscope.features.hooks import Place, axis_of, resolve_layer, samples_first, tensor_of
from rankscope.features.layer_store import LayerStore
from rankscope.features.reduction import Channels, Reduce
from rankscope.monitor.passes import Hook
from rankscope.slicing.meaning import LABELS
from rankscope.slicing.signature import signature_of

__all__ = ["TROUBLE", "StepFeatures", "counted_input"]

TROUBLE = (RankscopeError, torch.OutOfMemoryError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What a measurement may meet and training goes on from."""


class StepFeatures:
    """The moments of every cut point over the forward passes of one step, and what went wrong at which.

    Of a module that is called several times in one pass the name alone means the first call, as in ``feature_rank``, so
    that one name never stands for different calls of different passes; ``layer#2`` is the second. ``repeated`` holds
    the names without a number whose module was called again. Recomputation in a backward pass (gradient checkpointing)
    is not a pass, and neither is one in evaluation mode.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], reduce: Reduce, channels: Channels, memory: float
    ) -> None:
        self.model, self.names = model, list(names)
        self.several = (group_size() or 1) > 1
        self.stores = {name: LayerStore(reduce, channels, None, memory / max(len(names), 1)) for name in names}
        self.errors: dict[str, str] = {}
        self.repeated: set[str] = set()
        self._outputs: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()  # in this pass
        self._shape: tuple[int, ...] | None = None
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put the hooks in place."""
        if self._handles:
            return
        try:
            for name in self.names:
                place = resolve_layer(self.model, name)
                axis = axis_of(self.model, place.module, place.path)
                hook = Hook(place.module, self._keep(name, place, axis))
                self._handles.append(place.module.register_forward_hook(hook))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()
        self._outputs.clear()

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass begins: a call of ``model`` with these arguments."""
        self._outputs.clear()
        self._calls.clear()
        counted = counted_input(model, args, kwargs)
        self._shape = None if counted is None else tuple(counted[1].shape)

    def _keep(self, name: str, place: Place, axis: int) -> Any:
        wanted = place.which(self.model)

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if name in self.errors or not self.model.training:
                return
            self._calls[name] += 1
            if wanted not in (None, self._calls[name]):
                if place.call is None:
                    self.repeated.add(name)
                return
            try:
                # a copy: what follows may write into the output
                tensor = samples_first(tensor_of(name, place.path, output), axis)
                self._outputs[name] = tensor.detach().clone()
            except TROUBLE as error:
                self.errors[name] = _said(name, error)

        return hook

    @torch.no_grad()
    def end(self, *, failed: bool = False) -> None:
        """A pass is over: add what it left at the cut points; one that failed is none."""
        for name, output in self._outputs.items():
            if failed or name in self.errors:
                continue
            try:
                if self._shape is None:
                    raise DataError(f"{name}: the model was called without a tensor, so its samples are not known")
                store = self.stores[name]
                # what other processes saw can be added to moments alone
                if self._shape[0] and not (store.filled or self.several):
                    store.samples = self._shape[0]
                store.add({name: output}, self._shape[0], self._shape)
            except TROUBLE as error:
                self.errors[name] = _said(name, error)
        self._outputs.clear()

    @property
    def seen(self) -> bool:
        """Whether any cut point was called."""
        return any(store.filled for store in self.stores.values()) or bool(self.errors)

    def read(self, name: str) -> LayerFeatures | None:
        """The record of one layer; ``None`` where there is none, with the reason in ``errors``."""
        store = self.stores[name]
        if name not in self.errors and store.filled:
            try:
                return store.layer(name)
            except TROUBLE as error:
                self.errors[name] = _said(name, error)
        elif name not in self.errors:
            self.errors[name] = f"{name}: it was not called in this step"
        return None


def _said(name: str, error: BaseException) -> str:
    return str(error) if isinstance(error, RankscopeError) else f"{name}: {type_and_line(error)}"


def counted_input(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, Tensor] | None:
    """Name and value of the tensor whose first dimension counts samples: the first with features, else of any kind.

    Labels and masks may come before the features, and a scalar counts nothing. A mask of attention, (steps, steps), may
    have fractions too: masks and labels count where nothing else is given.
    """
    places = zip_longest(signature_of(model).positional[: len(args)], args, fillvalue="")
    named = chain.from_iterable(
        value.items() if isinstance(value, Mapping) else [(name, value)] for name, value in (*places, *kwargs.items())
    )
    tensors = [(str(name), v) for name, v in named if isinstance(v, Tensor) and v.ndim]
    no_masks = [(name, v) for name, v in tensors if "mask" not in name]
    own = [(name, v) for name, v in no_masks if name not in LABELS]
    # what is called y may be features: forward(t, y) of a differential equation
    features = [(name, v) for name, v in (*own, *no_masks) if v.is_floating_point() and v.ndim > 1]
    return next(iter((*features, *own, *tensors)), None)
