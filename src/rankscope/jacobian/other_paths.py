"""Samples that lead the model along another path than the first one's: by measurers of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from rankscope._base.dtypes import dtype_name
from rankscope._base.facts import Fact, FactKind, unsaid
from rankscope.jacobian.finish import Finished
from rankscope.linear.derivative import Derivative, Runners, Settings
from rankscope.linear.methods import Method
from rankscope.linear.runner import NotCalledError, Runner
from rankscope.slicing import ModuleCall, Sample
from rankscope.slicing.apart import worst_known

__all__ = ["Measurer", "OtherPaths", "absent_from"]


class Measurer(Protocol):
    """What measures samples of one shape."""

    settings: Settings
    calls: Sequence[ModuleCall]
    derivative: Derivative
    runner: Runner

    @property
    def way(self) -> Fact: ...

    @property
    def method(self) -> Method | None: ...

    @property
    def adjoint(self) -> float | None: ...

    def another(
        self, calls: Sequence[ModuleCall], settings: Settings | None = None, runners: Runners | None = None
    ) -> Measurer: ...

    def batch_size(self, sample: Sample, remaining: int) -> int: ...

    def measure(self, samples: Sequence[Sample]) -> Callable[[], list[Finished]]: ...

    def settle(self) -> None: ...


def absent_from(runner: Runner, sample: Sample) -> frozenset[int]:
    """The cut points that one plain call with this sample does not reach."""
    try:
        with runner.hooked():
            runner.outputs(sample, sample.x)
    except NotCalledError as error:
        return error.absent
    return frozenset()


class OtherPaths:
    """The measurers of such samples. They do not hold the one that asks, which would keep its room from being freed."""

    def __init__(self) -> None:
        self.uncompared: Measurer | None = None
        self._elsewhere: tuple[frozenset[int], Measurer] | None = None

    def without(self, asks: Measurer, sample: Sample, absent: frozenset[int]) -> Callable[[], list[Finished]]:
        """A sample that does not call some cut points: the others are measured, with every check made on this path.

        One such measurer is kept, as each holds the weights in the certificate's precision.
        """
        count = len(asks.calls)
        places = [k for k in range(count) if k not in absent]
        if not places:
            return lambda: [Finished([None] * count, 0, tuple(range(count)))]
        if self._elsewhere is None or self._elsewhere[0] != absent:
            self._elsewhere = None  # before the next one takes its room
            chosen = [asks.calls[k] for k in places]
            self._elsewhere = (absent, asks.another(chosen))
        done = _measured(self._elsewhere[1], asks.derivative, sample)
        return lambda: [image.among(places, count) for image in done()]

    def uncertified(self, asks: Measurer, sample: Sample) -> Callable[[], list[Finished]]:
        """A sample that calls every cut point, but not so in the other precision, which may tell nothing of it."""
        if not asks.settings.certify:  # what one precision calls changes from one call to the next
            why = "the model calls other modules from one call to the next"
            images = [Finished([None] * len(asks.calls), 0, reasons=dict.fromkeys(range(len(asks.calls)), why))]
            return lambda: images
        if self.uncompared is None:
            alone = replace(asks.settings, certify=False)
            self.uncompared = asks.another(asks.calls, alone, (asks.runner, None))
        other_path = Fact(FactKind.OTHER_PATH, {"dtype": dtype_name(asks.settings.dtype)}, caution=True)
        asks.derivative.facts += unsaid([other_path], asks.derivative.facts)
        # that one precision alone cannot check the function belongs to what is said of these samples
        return _measured(self.uncompared, asks.derivative, sample, without=FactKind.FUNCTION_UNCHECKED)


def _measured(
    other: Measurer, told: Derivative, sample: Sample, *, without: FactKind | None = None
) -> Callable[[], list[Finished]]:
    """One sample by another measurer, whose findings belong to the result but for those of one kind."""
    other.batch_size(sample, 1)
    done = other.measure([sample])
    other.settle()
    told.facts += unsaid([fact for fact in other.derivative.facts if fact.kind is not without], told.facts)
    told.failed_methods += [fact for fact in other.derivative.failed_methods if fact not in told.failed_methods]
    told.adjoint = worst_known([told.adjoint, other.derivative.adjoint])
    return done
