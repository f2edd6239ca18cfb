"""What the text and the figure of random chains are made of, and the laws that predict them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChainView", "Law"]


class Law(StrEnum):
    """Which law predicts a chain's ranks, or why none does; the values are its words."""

    OWN_ENTRIES = "none: the entries' law is the caller's own"
    FEWER_INPUTS = "none: the input has fewer dimensions than a layer"
    NORMALISED_BRANCH = "none: a normalised branch keeps its size as the skip grows, which has no closed form"
    RESIDUAL_RELU = "none: residual ReLU chains have no closed form"
    RESIDUAL = "residual chain"
    RESIDUAL_BESIDE = "residual chain without the activation, for comparison: no law of this block"
    GAUSSIAN_BESIDE = "Gaussian chain without the block's nonlinearity, for comparison: no law of this block"
    GAUSSIAN = "Gaussian chain"
    GAUSSIAN_RELU = "Gaussian chain of half the width (ReLU)"

    @property
    def predicts(self) -> bool:
        """Whether there is a curve at all."""
        return self not in (Law.OWN_ENTRIES, Law.FEWER_INPUTS, Law.NORMALISED_BRANCH, Law.RESIDUAL_RELU)

    @property
    def beside(self) -> bool:
        """Whether the curve is that of another block, to compare with."""
        return self in (Law.RESIDUAL_BESIDE, Law.GAUSSIAN_BESIDE)


@dataclass(frozen=True, eq=False)
class ChainView:
    """Random chains as arrays.

    ``ranks`` and ``dimensions`` have shape (seeds, depth), NaN after a stop; ``predicted`` holds two arrays of shape
    (depth,). ``stops`` and ``singular`` have an entry per seed: the layer of the float32 stop, and (layer, rank) of
    singular weights. ``rises`` holds (seed, depth). ``floor`` is what the stopping rule compares with.
    """

    title: str
    dtype: str
    tolerance: str
    samples: int
    seconds: float
    width: int
    depth: int
    residual: bool
    ranks: NDArray[np.float64]
    dimensions: NDArray[np.float64]
    predicted: tuple[NDArray[np.float64], NDArray[np.float64]]
    law: Law
    law_range: str
    in_range: bool
    seeds: tuple[int, ...]
    stops: tuple[int | None, ...]
    singular: tuple[tuple[tuple[int, int], ...], ...]
    rises: tuple[tuple[int, int], ...]
    floor: float
