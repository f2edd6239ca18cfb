"""What a probe is run with, checked once at the boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rankscope._base.checks import (
    DeviceLike,
    DtypeLike,
    MemoryBudget,
    budget_of,
    choice_of,
    count_of,
    device_of,
    dtype_of,
    seed_of,
    shape_of,
)
from rankscope._base.errors import UsageError
from rankscope.spectra import Tolerance, ToleranceLike, as_tolerance

__all__ = ["Front", "Settings"]

Front = Literal["gaussian", "orthogonal"]
_FRONTS = ("gaussian", "orthogonal")


@dataclass(frozen=True)
class Settings:
    """Validated options of ``probe`` and ``probe_all``; sizes without the batch dimension."""

    input_shape: tuple[int, ...]
    batch: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    tolerance: Tolerance
    points: int
    context: int
    front: Front
    budget: int

    @property
    def size(self) -> int:
        return math.prod(self.input_shape)

    @classmethod
    def of(
        cls,
        *,
        input_shape: Sequence[int],
        batch: int,
        seed: int,
        device: DeviceLike,
        dtype: DtypeLike,
        tolerance: ToleranceLike,
        jacobian_points: int,
        context: int,
        front: str,
        memory_budget: MemoryBudget,
    ) -> Settings:
        """Check every option; raises ``UsageError`` or ``DeviceError`` with the value and the remedy."""
        shape = shape_of(input_shape, "input_shape")
        samples = count_of(batch, "batch", least=2, most=10**7)  # a covariance needs two
        points = count_of(jacobian_points, "jacobian_points", most=10**6)
        if points > samples:
            raise UsageError(f"jacobian_points is {points} with a batch of {samples}; points are samples of the batch")
        where = device_of(device)
        chosen: Front = "orthogonal" if choice_of(front, "front", _FRONTS) == "orthogonal" else "gaussian"
        return cls(
            shape,
            samples,
            seed_of(seed),
            where,
            dtype_of(dtype),
            as_tolerance(tolerance),
            points,
            min(count_of(context, "context", least=2), samples),
            chosen,
            budget_of(memory_budget, where, share=0.8, most=None),
        )
