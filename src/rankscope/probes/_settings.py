"""What a probe is run with, checked once at the boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
from rankscope._base.errors import UsageError, parameter
from rankscope._base.text import counted
from rankscope.spectra import Tolerance, ToleranceLike, as_tolerance

__all__ = ["Front", "Settings"]

Front = Literal["gaussian", "orthogonal", "none"]
_FRONTS = ("gaussian", "orthogonal")
_SHAPE, _SAMPLES = (128, 8, 8), 5000  # paper, §6.1


@dataclass(frozen=True)
class Settings:
    """Validated options of ``probe`` and ``probe_all``; sizes without the batch dimension."""

    input_shape: tuple[int, ...]
    samples: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    tolerance: Tolerance
    points: int
    context: int
    front: Front
    training: bool
    budget: int

    @property
    def size(self) -> int:
        return math.prod(self.input_shape)

    @classmethod
    def of(
        cls,
        *,
        input_shape: Sequence[int] | None,
        samples: int | None,
        seed: int,
        device: DeviceLike,
        dtype: DtypeLike,
        tolerance: ToleranceLike,
        jacobian_points: int,
        context: int,
        front: str,
        training: bool,
        memory_budget: MemoryBudget,
        given: Tensor | None = None,
    ) -> Settings:
        """Check every option; raises ``UsageError`` or ``DeviceError`` with the value and the remedy.

        ``given`` are samples of the component's own input, in place of noise behind a random layer.
        """
        if given is not None:
            for name, value in (("input_shape", input_shape), ("samples", samples)):
                if value is not None:
                    raise UsageError(f"{parameter('inputs')} have their own {parameter(name)}; leave it out")
            if choice_of(front, "front", _FRONTS) != "gaussian":
                raise UsageError(
                    f"{parameter('front')} is {front!r}, but given {parameter('inputs')} pass through no random layer; "
                    "leave it out"
                )
            if len(given) < 2:
                raise UsageError(f"a feature dimension needs two samples; {parameter('inputs')} hold {len(given)}")
            input_shape, samples = tuple(given.shape[1:]), len(given)
        shape: tuple[int, ...] = ()  # of samples of one number each
        if given is None or given.ndim > 1:
            shape = shape_of(_SHAPE if input_shape is None else input_shape, "input_shape")
        # a covariance needs two
        count = count_of(_SAMPLES if samples is None else samples, "samples", least=2, most=10**7)
        points = count_of(jacobian_points, "jacobian_points", most=10**6)
        if points > count:
            raise UsageError(
                f"{parameter('jacobian_points')} is {points} with {counted(count, 'sample')}; points are some of "
                "the samples"
            )
        where = device_of(device)
        if not isinstance(training, bool):
            raise UsageError(f"{parameter('training')} is {training!r}; give True or False")
        named = choice_of(front, "front", _FRONTS)
        chosen: Front = "none" if given is not None else "orthogonal" if named == "orthogonal" else "gaussian"
        return cls(
            shape,
            count,
            seed_of(seed),
            where,
            dtype_of(dtype),
            as_tolerance(tolerance),
            points,
            min(count_of(context, "context", least=2), count),
            chosen,
            training,
            budget_of(memory_budget, where, share=0.8, most=None),
        )
