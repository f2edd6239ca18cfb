"""The states of random generators that a model holds: what a call draws from one changes what the next call draws."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["GeneratorState", "generator_of"]


@dataclass(frozen=True)
class GeneratorState:
    """Where a generator is in its sequence; two of them are equal where they are at the same place."""

    place: Any
    given: Any = field(compare=False)
    """What the generator itself takes back."""


def generator_of(value: Any) -> tuple[Callable[[], GeneratorState], Callable[[GeneratorState], object]] | None:
    """How to read the state of a random generator and how to put one back; ``None`` for everything else.

    >>> read, write = generator_of(draws := random.Random(0))
    >>> before, first = read(), draws.random()
    >>> write(before)
    >>> draws.random() == first
    True
    """
    if isinstance(value, torch.Generator):
        return _reading(value.get_state), lambda state: value.set_state(state.given)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):  # which has no state
        return _reading(value.getstate), lambda state: value.setstate(state.given)
    if isinstance(value, np.random.RandomState):
        return _reading(lambda: value.get_state(legacy=False)), lambda state: value.set_state(state.given)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return _reading(lambda: bits.state), lambda state: setattr(bits, "state", state.given)
    return None


def _reading(state: Callable[[], Any]) -> Callable[[], GeneratorState]:
    def read() -> GeneratorState:
        given = state()
        return GeneratorState(_comparable(given), given)

    return read


def _comparable(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    return state.tobytes() if isinstance(state, np.ndarray) else state
