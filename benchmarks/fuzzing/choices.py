"""Seeded choices, and the registry of the pieces that a random network is made of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

__all__ = ["PIECES", "Choices", "Piece", "Shape", "piece"]

Shape = tuple[int, ...]  # of one sample
Build = Callable[["Choices", Shape], tuple[nn.Module, Shape]]
T = TypeVar("T")


@dataclass
class Choices:
    """Random choices of one seed, and the ingredients that were used."""

    seed: int
    used: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def one(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        return self.random.choices(options, weights)[0]

    def size(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def use(self, ingredient: str) -> None:
        if ingredient not in self.used:
            self.used.append(ingredient)


@dataclass(frozen=True)
class Piece:
    """A part of a network: what it takes by number of dimensions, and how it is made for one shape.

    ``homogeneous``: f(s·h) = s·f(h) up to biases, so that no scale takes it out of the range of normal numbers.
    ``couples``: samples of one batch change each other.
    """

    name: str
    dims: tuple[int, ...]
    build: Build
    homogeneous: bool
    couples: bool
    weight: float


PIECES: dict[str, Piece] = {}


def piece(
    name: str, *dims: int, homogeneous: bool = False, couples: bool = False, weight: float = 1.0
) -> Callable[[Build], Build]:
    """Register a builder ``(choices, shape) -> (module, shape of its output)``."""

    def register(build: Build) -> Build:
        assert name not in PIECES, name
        PIECES[name] = Piece(name, dims, build, homogeneous, couples, weight)
        return build

    return register
