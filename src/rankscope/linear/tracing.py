"""Which cut points there are: a trace in the precision that is measured, of the first sample that calls one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from rankscope._base.checks import device_of
from rankscope._base.errors import MeasurementError, ModelError
from rankscope.linear.returned import without_derivative
from rankscope.slicing import CutPointsLike, ModuleCall, Sample, Samples, Trace, on_this_path, select, trace
from rankscope.slicing.one_sample import CallFailedError
from rankscope.slicing.precision import converted
from rankscope.slicing.state import set_aside

__all__ = ["Chosen", "as_measured", "at_home", "traced", "traced_calls"]

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Chosen:
    """What ``cut_points=`` stands for on the first sample that calls any of it."""

    trace: Trace
    calls: list[ModuleCall]
    """Those that depend on the input."""
    unmeasured: dict[str, str]
    """Why the others cannot be measured."""
    waiting: tuple[str, ...]
    """Names under which only other samples may call anything."""
    passed: list[Sample]
    """Further samples that were read to find one; the last of them is the one that was traced."""


def at_home(model: nn.Module, sample: Sample) -> Sample:
    """The sample on the model's device, in the model's own dtype."""
    home = device_of(None, model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), sample.x.dtype)
    return sample.to(home, dtype)


def as_measured(model: nn.Module, sample: Sample, dtype: torch.dtype, ask: Callable[[Sample], _Answer]) -> _Answer:
    """What ``ask`` says of a sample on the model's device while the model is in ``dtype``, in which it is measured.

    There a branch may be taken otherwise, and some operators (an FFT) refuse half precision.
    """
    own = at_home(model, sample)
    try:
        with set_aside(model), converted(model, dtype):
            return ask(sample.to(own.x.device, dtype))  # not by way of its own dtype, which would round the input
    except ModelError:
        if own.x.dtype == dtype:
            raise
    return ask(own)  # it names its own dtype inside


def traced(model: nn.Module, sample: Sample, dtype: torch.dtype) -> Trace:
    """The model's calls on one sample."""
    return as_measured(model, sample, dtype, lambda s: trace(model, s))


def traced_calls(
    model: nn.Module, samples: Samples, first: Sample, cut_points: CutPointsLike, dtype: torch.dtype
) -> Chosen:
    """The calls that ``cut_points`` names, of the first sample or of the first after it that makes any of them."""
    sample, passed = first, list[Sample]()
    while True:
        try:
            found = traced(model, sample, dtype)
        except CallFailedError as error:
            raise ModelError(f"{error.marked}{samples.counted()}") from error
        calls, waiting = on_this_path(model, found, cut_points)
        if calls:
            break
        following = next(samples, None)
        if following is None:
            select(model, found, cut_points)  # no sample calls any: the error names the nearest
            raise MeasurementError("no sample calls a requested cut point")
        passed.append(following)
        sample = following
    unmeasured, ends = as_measured(model, sample, dtype, lambda s: without_derivative(model, s, calls))
    chosen = [c for c in calls if c.depends]
    if not chosen:
        remedy = f"{ends}; " if ends else ""
        raise MeasurementError(f"{remedy}no requested cut point depends on the input: {', '.join(unmeasured)}")
    return Chosen(found, chosen, unmeasured, waiting, passed)
