"""Derivatives also where a model hides them: gradients turned off, inference mode, re-entrant checkpointing.

None of the three changes what a model computes, so its function has the same derivative with and without them. But
reverse mode, and with it the graph of the trace, takes what is computed under ``torch.no_grad()`` for a constant;
forward mode also takes what is computed in inference mode for one; and the function behind
``checkpoint(…, use_reentrant=True)`` has no derivative in forward mode and none for ``torch.autograd.grad``. Any
checkpoint computes its function again in the backward pass, when converted weights have left their places.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["StaysOn", "plain_modes", "recording_through"]


class StaysOn(TorchFunctionMode):
    """While gradients are on, nothing turns them off. ``needed``: whether something would have."""

    def __init__(self) -> None:
        super().__init__()
        self.needed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            self.needed = self.needed or not args[0]
            args = (True,)
        return func(*args, **(kwargs or {}))


@contextmanager
def recording_through(model: nn.Module, mode: StaysOn | None) -> Iterator[None]:
    """Inside, with gradients on, ``torch.no_grad()`` has no effect; for ``None`` it has.

    Tensors of the model that got a history lose it afterwards.
    """
    if mode is None:
        yield
        return
    try:
        with mode:
            yield
    finally:
        for module in model.modules():
            for tensor in [*module._buffers.values(), *vars(module).values()]:
                if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None and not tensor._is_view():
                    tensor.detach_()


class _GradientsOff:
    """In the place of inference mode: what it promises, without making tensors that take no derivative."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        if self.enabled:
            torch.set_grad_enabled(False)

    def __exit__(self, *_: Any) -> None:
        torch.set_grad_enabled(self.before)


class _RunsOnce:
    """In the place of ``CheckpointFunction``: the function itself, computed once and kept."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _runs_nothing(*_: Any, **__: Any) -> Iterator[None]:
    """In the place of what checkpointing does before and after its function."""
    yield


_AROUND = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")


@contextmanager
def plain_modes() -> Iterator[None]:
    """Inside, inference mode only turns gradients off, and checkpointing only calls its function."""
    mode: Any = torch._C._InferenceMode
    checkpointing: Any = sys.modules.get("torch.utils.checkpoint")
    plain = {"CheckpointFunction": _RunsOnce, **dict.fromkeys(_AROUND, _runs_nothing)}
    before = {name: getattr(checkpointing, name) for name in plain if hasattr(checkpointing, name)}
    try:
        torch._C._InferenceMode = _GradientsOff  # type: ignore[assignment, misc]
        for name in before:
            setattr(checkpointing, name, plain[name])
        yield
    finally:
        torch._C._InferenceMode = mode  # type: ignore[misc]
        for name, value in before.items():
            setattr(checkpointing, name, value)
