"""Features of the batches that a model is trained on: forward hooks that exist in monitored steps alone.

What a hook does changes nothing that training sees: it reads a detached output, draws no random number and writes
nowhere but into the monitor's own float64 moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import DataError, RankscopeError
from rankscope.features.feature_profile import LayerFeatures
from rankscope.features.hooks import axis_of, resolve_layer, samples_first, tensor_of
from rankscope.features.layer_store import LayerStore
from rankscope.features.reduction import Channels, Reduce

__all__ = ["StepFeatures"]


class StepFeatures:
    """The moments of every cut point over the forward passes of one step, and what went wrong at which.

    A module that is called several times in one pass gives its last output. Recomputation in a backward pass (gradient
    checkpointing) is not a pass, and neither is one in evaluation mode.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], reduce: Reduce, channels: Channels, memory: float
    ) -> None:
        self.model, self.names = model, list(names)
        self.stores = {name: LayerStore(reduce, channels, None, memory / max(len(names), 1)) for name in names}
        self.errors: dict[str, str] = {}
        self._outputs: dict[str, Tensor] = {}
        self._shape: tuple[int, ...] | None = None
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put the hooks in place."""
        try:
            for name in self.names:
                module, path = resolve_layer(self.model, name)
                axis = axis_of(self.model, module, path)
                self._handles.append(module.register_forward_hook(self._keep(name, path, axis)))
            self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._handles.append(self.model.register_forward_hook(self._end))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()
        self._outputs.clear()

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not recomputes():
            self.begin(args, kwargs)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass begins; its first tensor's first dimension counts samples."""
        self._outputs.clear()
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        self._shape = None if first is None else tuple(first.shape)

    def _keep(self, name: str, path: str | None, axis: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if recomputes() or name in self.errors or not self.model.training:
                return
            try:
                # a copy: what follows may write into the output
                tensor = samples_first(tensor_of(name, path, output), axis)
                self._outputs[name] = tensor.detach().clone()
            except RankscopeError as error:
                self.errors[name] = str(error)

        return hook

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if not recomputes():
            self.take(self._outputs)
            self._outputs.clear()

    @torch.no_grad()
    def take(self, outputs: dict[str, Tensor]) -> None:
        """Add what one forward pass left at the cut points."""
        samples = self._shape[0] if self._shape else 1
        for name, output in outputs.items():
            if name in self.errors:
                continue
            try:
                self.stores[name].add({name: output}, samples, self._shape)
            except RankscopeError as error:
                self.errors[name] = str(error)

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
            except DataError as error:
                self.errors[name] = str(error)
        elif name not in self.errors:
            self.errors[name] = f"{name}: it was not called in this step"
        return None


def recomputes() -> bool:
    """Whether this runs inside a backward pass, as the recomputation of gradient checkpointing does."""
    return bool(torch._C._current_graph_task_id() != -1)
