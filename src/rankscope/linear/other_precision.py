"""The precision that ranks are compared with: how a model runs there, and how tangents are pushed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rankscope._base.checks import budget_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import MeasurementError, first_line, is_out_of_memory, raise_ours
from rankscope._base.facts import Fact, FactKind
from rankscope.linear.checks import lower_precision_inside
from rankscope.linear.linear_map import LinearMap, works_in
from rankscope.linear.methods import Method
from rankscope.linear.rounded import Rounded
from rankscope.linear.runner import NotCalledError, Runner
from rankscope.slicing import Sample
from rankscope.slicing.apart import worst_gaps

__all__ = ["PROBES", "OtherPrecision", "in_other_precision"]

PROBES = 6  # the certificate's bound fails with probability 10^-6
_CARRIED = 1e-2  # of the largest entry: rounding to float32 gives 1e-6, a range that is too small gives 1
_SINGLE, _LONG = 24, 43  # bits: where chaos leaves no digit of the first, the second has some
_MOST = 0.9  # of the free memory: what copies of all weights may take where there is no other way


@dataclass(frozen=True)
class OtherPrecision:
    """Float64 beside a working precision of float32. A float64 sweep is compared with float32, or with float64 whose
    every result is ``rounded`` to so many bits.

    ``widened`` says that the model casts down inside and is compared with itself without the casts, in float64.
    """

    runner: Runner
    method: Method
    down: bool
    """Whether the working precision is float64."""
    widened: bool = False
    rounded: int | None = None

    def at(self, sample: Sample) -> LinearMap:
        """The Jacobian at a sample."""
        arithmetic = nullcontext if self.rounded is None else partial(Rounded, self.rounded)
        there = sample.to(self.runner.device, self.runner.dtype)
        return LinearMap(self.runner, self.method, there, arithmetic=arithmetic)

    @property
    def scale(self) -> float:
        """By how much the working precision errs less than the difference of the two.

        Float32 errs by 2^29 more than float64; 16 for what need not scale exactly.
        """
        if not self.down or self.widened:
            return 1.0
        # rounding each result leaves out what sums within an operator lose: 2^9 for √(2^18) terms
        return 2.0**-25 if self.rounded is None else 2.0 ** (self.rounded - 44)

    @property
    def certificate(self) -> Fact:
        """What certifies a rank that is compared with this."""
        if self.down and not self.widened:
            return Fact(FactKind.SCALED_PROBES, {"probes": PROBES})
        return Fact(FactKind.PROBES, {"probes": PROBES, "failure": 10.0**-PROBES})


def in_other_precision(
    working: Runner,
    given: Runner,
    method: Method,
    sample: Sample,
    *,
    casts: str,
    tangents: tuple[Tensor, Sequence[Tensor]],
) -> tuple[OtherPrecision, list[Fact]]:
    """How ``given``, the sub-networks of the hooked ``working`` in the other precision, are run, and what to say of it.

    ``casts`` names the dtype that the model casts to inside. ``tangents`` are a direction of the input and J·v in the
    working precision.

    Raises
    ------
    NotCalledError
        Where the sample does not call every cut point there.
    Exception
        What the model's own code raises where it does not run there.
    """
    down = working.dtype == torch.float64
    rounded = None
    if down and not casts and not _carries(given, method, sample, *tangents):
        given = given.in_dtype(torch.float64)
        short = partial(Rounded, _SINGLE)
        rounded = _SINGLE if _carries(given, method, sample, *tangents, arithmetic=short) else _LONG
    weights = given.weights
    about = {"dtype": dtype_name(given.dtype), "bytes": weights.bytes, "budget": given.room}
    facts: list[Fact] = []

    def found() -> OtherPrecision:
        runner, widened = _without_casts(working, given, sample, down=down, casts=casts)
        with runner.hooked():
            left = lower_precision_inside(runner, sample.to(runner.device, torch.float64)) if widened else ""
            if left:  # a comparison with the casts would be an estimate
                raise MeasurementError(f"it casts to {left} inside")
            there = works_in(runner, sample.to(runner.device, runner.dtype), method)
        return OtherPrecision(runner, there, down, widened, rounded)

    try:
        other = found()
    except NotCalledError:
        raise
    except Exception as error:  # the model's own code, which may ask a stand-in for what a tensor alone has
        raise_ours(error)
        room = budget_of(None, given.device, share=_MOST, most=None)
        if not weights.on_demand or is_out_of_memory(error) or weights.bytes > room:
            raise
        weights.keep_all()  # copies of all of them, as the model does not run without
        other = found()
        facts.append(Fact(FactKind.WEIGHTS_HELD, {**about, "reason": first_line(error)}))
    if weights.on_demand:
        facts.append(Fact(FactKind.WEIGHTS_ON_DEMAND, about))
    if casts:
        facts.append(Fact(FactKind.CASTS_DOWN, {"to": casts}))
    return other, facts


def _carries(
    given: Runner,
    method: Method,
    sample: Sample,
    direction: Tensor,
    out: Sequence[Tensor],
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> bool:
    """Whether it gives about what float64 gave: its range may be too small, its digits, or a constant be of float64."""
    try:
        with given.hooked(), arithmetic():
            one = sample.to(given.device, given.dtype)
            found = method(given, one, direction[None].to(one.x))
    except Exception as error:  # the model's own code
        raise_ours(error)
        return False
    same_shape = [b.reshape(a.shape) for a, b in zip(found, out, strict=True)]
    return float(worst_gaps([a.double() for a in found], same_shape)) <= _CARRIED


def _without_casts(working: Runner, given: Runner, sample: Sample, *, down: bool, casts: str) -> tuple[Runner, bool]:
    """The sub-networks to compare with, and whether the model's casts are left out of them.

    A model that casts inside has the same error in float64 around it.
    """
    own = working if down else given
    double = sample.to(given.device, torch.float64)
    with nullcontext() if down else own.hooked():  # the working runner is hooked already
        widened = bool(casts) if down else _needs_widening(own, double)
    return (own.without_casts(), True) if widened else (given, False)


def _needs_widening(runner: Runner, sample: Sample) -> bool:
    """Whether the model casts below float64 inside, or makes narrower constants that float64 does not go with."""
    try:
        return bool(lower_precision_inside(runner, sample))
    except (RuntimeError, TypeError, ValueError):
        return True  # what fails for another reason fails without the casts too, and says so there
