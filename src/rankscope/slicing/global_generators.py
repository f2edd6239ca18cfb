"""Whether a call draws from random generators that a model does not hold: the global ones, and those beside its code.

Two draws may happen to be equal, so whether a model is random is not asked of two calls alone: where a generator has
moved, further calls are made.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from rankscope.slicing.generators import GeneratorState, generator_of

__all__ = ["FURTHER_DRAWS", "GlobalGenerators"]

FURTHER_DRAWS = 24  # a choice of two by halves, such as a flip, is then missed with a probability of 2^-24


class GlobalGenerators:
    """Those of torch for the CPU and the model's GPU, of Python and of NumPy, and those beside the model's code."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._read: list[Callable[[], Any]] = [random.getstate, _numpy_state, _cpu_state]
        if device.type == "cuda":
            self._read.append(lambda: torch.cuda.get_rng_state(device).numpy().tobytes())
        self._read += _beside_the_code(model)
        self._before = self._places()

    @property
    def moved(self) -> bool:
        """Whether anything was drawn since this was made."""
        return self._places() != self._before

    def _places(self) -> list[Any]:
        return [read() for read in self._read]


def _cpu_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _numpy_state() -> Any:
    state = np.random.get_state(legacy=False)
    return {**state, "state": {**state["state"], "key": state["state"]["key"].tobytes()}}


def _beside_the_code(model: nn.Module) -> list[Callable[[], GeneratorState]]:
    """Readers of the generators that the functions of the model's classes, and those it holds, have as globals."""
    scopes: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        held = [value for value in vars(module).values() if isinstance(value, FunctionType)]
        for function in (getattr(type(module), "forward", None), *held):
            if isinstance(function, FunctionType):
                scopes[id(function.__globals__)] = function.__globals__
    found = {id(value): generator_of(value) for scope in scopes.values() for value in list(scope.values())}
    return [pair[0] for pair in found.values() if pair is not None]
