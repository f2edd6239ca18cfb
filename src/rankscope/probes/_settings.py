"""What a probe is run with, checked once at the boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import psutil
import torch

from rankscope._base.errors import UsageError, nearest
from rankscope.loading import resolve_device
from rankscope.spectra import Tolerance, ToleranceLike, as_tolerance

__all__ = ["Front", "Settings", "memory_budget_bytes", "pick_device", "pick_dtype", "positive"]

Front = Literal["gaussian", "orthogonal"]
_FRONTS = ("gaussian", "orthogonal")
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def positive(name: str, value: Any, least: int = 1) -> int:
    """The value as an integer of at least ``least``.

    >>> positive("batch", 5000)
    5000
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return int(value)


def _shape(sizes: Any) -> tuple[int, ...]:
    listed = tuple(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else (sizes,)
    if not listed or any(isinstance(v, bool) or not isinstance(v, Integral) or v < 1 for v in listed):
        raise UsageError(f"input_shape is {sizes!r}; give the sizes of one sample, for instance (128, 8, 8)")
    return tuple(int(v) for v in listed)


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or for ``None`` the first GPU where there is one, else the CPU.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    found = resolve_device("auto" if device is None else device)
    if found.type == "mps":
        raise UsageError("device 'mps' has no float64, which rank needs; use 'cpu' or 'cuda'")
    return found


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float64 or float32, by name or as torch's own object."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise UsageError(f"dtype is {dtype!r}; {nearest(str(dtype), _DTYPES)}")
    return _DTYPES[dtype]


def memory_budget_bytes(budget: Any, device: torch.device) -> int:
    """Bytes that the matrices may take: as given, or 80 % of what is free on the device."""
    if budget is not None:
        if not isinstance(budget, int | float) or not 0 < budget < math.inf:
            raise UsageError(f"memory_budget is {budget!r}; it must be a positive number of bytes")
        return int(budget)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(0.8 * free)


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
        device: str | torch.device | None,
        dtype: str | torch.dtype,
        tolerance: ToleranceLike,
        jacobian_points: int,
        context: int,
        front: str,
        memory_budget: int | float | None,
    ) -> Settings:
        """Check every option; raises ``UsageError`` or ``DeviceError`` with the value and the remedy."""
        shape = _shape(input_shape)
        if positive("batch", batch) < 2:
            raise UsageError(f"batch is {batch}; a covariance needs at least 2 samples (the paper takes 5,000)")
        if front not in _FRONTS:
            raise UsageError(f"unknown front layer {front!r}; {nearest(str(front), _FRONTS)}")
        points = positive("jacobian_points", jacobian_points)
        if points > batch:
            raise UsageError(f"jacobian_points is {points} with a batch of {batch}; points are samples of the batch")
        where = pick_device(device)
        chosen: Front = "orthogonal" if front == "orthogonal" else "gaussian"
        return cls(
            shape,
            int(batch),
            positive("seed", seed, 0),
            where,
            pick_dtype(dtype),
            as_tolerance(tolerance),
            points,
            min(positive("context", context, 2), batch),
            chosen,
            memory_budget_bytes(memory_budget, where),
        )
