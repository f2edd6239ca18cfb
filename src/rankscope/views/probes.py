"""What the texts and figures of probes are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankscope._base.facts import Fact

__all__ = ["Bounded", "ProbeRow", "ProbesView", "RemediesView", "RemedyLine"]


@dataclass(frozen=True)
class Bounded:
    """A count between bounds, which say nothing where it is not certified."""

    value: int
    lower: int
    upper: int
    certified: bool


@dataclass(frozen=True)
class ProbeRow:
    """One component. ``expected`` holds the exact and the numerical rank, None where unknown."""

    name: str
    label: str
    outputs: int
    dimension_before: Bounded
    dimension_after: Bounded
    rank_before: Bounded
    rank_after: Bounded
    at_sample_limit: bool
    exact_rank_at_least: int
    expected: tuple[int | None, int | None]
    expectation: str
    certificate: Fact
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class ProbesView:
    """Components behind one random layer of ``units`` units."""

    rows: tuple[ProbeRow, ...]
    input_shape: tuple[int, ...]
    samples: int
    front: str
    units: int
    tolerance: str
    dtype: str
    device: str
    sample_limit: int


@dataclass(frozen=True, eq=False)
class RemedyLine:
    """One remedy: ranks and dimensions of shape (seeds, depth)."""

    label: str
    ranks: NDArray[np.float64]
    dimensions: NDArray[np.float64]
    certain: bool
    batchnorm: bool


@dataclass(frozen=True, eq=False)
class RemediesView:
    """Remedies on one chain."""

    curves: tuple[RemedyLine, ...]
    depths: NDArray[np.int64]
    width: int
    activation: str | None
    seeds: int
    seconds: float
    tolerance: str
    samples: int
