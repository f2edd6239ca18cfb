"""One ``BatchMeasurer`` for samples of each shape: what a first sample shows holds for its own shape alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rankscope._base.facts import Fact, FactKind, unsaid
from rankscope.jacobian.batch import BatchMeasurer
from rankscope.jacobian.findings import Shown, deduplicated
from rankscope.jacobian.finish import Finisher
from rankscope.jacobian.full_measurer import Full, FullMeasurer
from rankscope.jacobian.last_cut import nothing_follows
from rankscope.linear.derivative import Settings, in_both_precisions
from rankscope.slicing import ModuleCall, Sample
from rankscope.slicing.apart import worst, worst_known

__all__ = ["Measurers", "layout"]

_KEPT = 4  # shapes whose traced networks and recorded passes stay at hand
_WEAKEST = (
    FactKind.PROBES,
    FactKind.SCALED_PROBES,
    FactKind.NARROW_PROBES,
    FactKind.NOT_IN_FLOAT64,
    FactKind.NO_COMMON_PATH,
)


def layout(sample: Sample) -> tuple[Any, ...]:
    """The shapes of all tensors of a call: samples of one layout can be measured alike.

    >>> import torch
    >>> layout(Sample(torch.zeros(1, 5, 2), "text 0", extra={"mask": torch.ones(1, 5)}))
    ((1, 5, 2), ('mask', (1, 5)))
    """
    beside = (
        (k, *(tuple(v.shape) for v in tree_leaves(value) if isinstance(v, Tensor))) for k, value in _extra(sample)
    )
    return (tuple(sample.x.shape), *(entry for entry in beside if len(entry) > 1))


def _extra(sample: Sample) -> list[tuple[str, Any]]:
    return sorted(sample.extra.items(), key=lambda item: item[0])


class Measurers:
    """Use it inside ``measuring``; ``close`` waits for what is under way."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[ModuleCall],
        settings: Settings,
        finisher: Finisher | None = None,
        full: Full | None = None,
    ) -> None:
        self.model, self.calls, self.settings, self.full = model, calls, settings, full
        self.finisher = finisher or Finisher(settings.device, settings.dtype)
        self._runners = in_both_precisions(model, calls, settings)  # shared by all shapes
        self._at_hand: dict[tuple[Any, ...], BatchMeasurer] = {}
        self._facts: list[Fact] = []
        self.failed_methods: list[Fact] = []
        self.chunk = 0
        self._ways: list[Fact] = []
        self._certificates: list[Fact] = []
        self._adjoint: list[float | None] = []

    def of(self, sample: Sample) -> BatchMeasurer:
        """The one for this sample's shape, with all its checks made on the first sample of that shape."""
        key = layout(sample)
        found = self._at_hand.pop(key, None)
        if found is None:
            found = self._new()
            while len(self._at_hand) >= _KEPT:
                self._take_in(self._at_hand.pop(next(iter(self._at_hand))))
        self._at_hand[key] = found  # the latest stands last
        return found

    def at_hand(self, sample: Sample) -> bool:
        """Whether the one for this sample's shape has been made."""
        return layout(sample) in self._at_hand

    def returned(self, sample: Sample) -> Any:
        """What the model returns for a sample in the precision that is measured."""
        return self._runners[0].returned(sample, sample.x)

    def nothing_follows(self, sample: Sample) -> bool:
        """Whether the model does nothing behind the last cut point that this sample leads to."""
        return nothing_follows(self._runners[0], sample)

    def whole(self, sample: Sample) -> None:
        """The sample is kept as a whole: its cut points need not be kept one by one."""
        if self.full is not None and self.full.kept is not None:
            self.full.kept.discard(sample, self.calls)

    def _new(self) -> BatchMeasurer:
        if self.full is None:
            return BatchMeasurer(self.model, self.calls, self.settings, self.finisher, self._runners)
        return FullMeasurer(self.model, self.calls, self.settings, self.full, self.finisher, self._runners)

    def one_path(self, sample: Sample) -> bool:
        """Whether a trace has shown that no value of such a sample decides what is called up to the last cut point."""
        found = self._at_hand.get(layout(sample))
        return found is not None and found.derivative.traced and not sample.extra

    def settle(self) -> None:
        """Decide what is open about the images swept last."""
        for one in self._at_hand.values():
            one.settle()

    def _take_in(self, one: BatchMeasurer) -> None:
        """What this one found out belongs to the result."""
        one.settle()
        self._facts += unsaid(one.derivative.facts, self._facts)
        self.failed_methods += unsaid(one.derivative.failed_methods, self.failed_methods)
        self.chunk = max(self.chunk, one.chunk)
        if one.method is not None:
            self._ways.append(one.way)
            self._adjoint.append(one.adjoint)
            self._certificates.append(one.certificate)

    def gather(self) -> None:
        """Take in what every shape has shown; afterwards the properties below are complete."""
        for one in self._at_hand.values():
            self._take_in(one)
        self._at_hand.clear()

    def take_over(self, shown: Sequence[Shown]) -> None:
        """What the measurers of all processes have shown, one entry a shape, in place of what these have."""
        self._at_hand.clear()
        self._facts = deduplicated(fact for one in shown for fact in one.facts)
        self.failed_methods = deduplicated(fact for one in shown for fact in one.failed)
        self._ways = [one.way for one in shown]
        self._adjoint = [one.adjoint for one in shown]
        self._certificates = [one.certificate for one in shown]
        self.chunk = max((one.chunk for one in shown), default=0)

    def join(self, other: Measurers) -> None:
        """Take over what the measurers of other cut points have shown."""
        other.gather()
        self._facts += unsaid(other._facts, self._facts)
        self.failed_methods += unsaid(other.failed_methods, self.failed_methods)
        self._ways += other._ways
        self._adjoint += other._adjoint
        self._certificates += other._certificates

    @property
    def facts(self) -> list[Fact]:
        """What was found out so far."""
        found = list(self._facts)
        for one in self._at_hand.values():
            found += unsaid(one.derivative.facts, found)
        return found

    @property
    def way(self) -> Fact:
        """How tangents were pushed: the way of the first shape, with the largest difference of all."""
        if not self._ways:
            return Fact(FactKind.KEPT_IMAGES)
        first = self._ways[0]
        if first.kind is not FactKind.LINEARISED:
            return first
        same = [w["difference"] for w in self._ways if w.kind is FactKind.LINEARISED]
        return Fact(FactKind.LINEARISED, {"name": first["name"], "difference": worst(same)})

    @property
    def adjoint(self) -> float | None:
        """The largest disagreement of both modes; ``None`` where reverse mode fails for some shape."""
        return worst_known(self._adjoint)

    @property
    def certificate(self) -> Fact:
        """What bounds the error, at the shape where it is weakest."""
        if not self._certificates:
            return Fact(FactKind.KEPT_IMAGES if self.settings.certify else FactKind.NOT_CERTIFIED)
        return max(self._certificates, key=lambda f: _WEAKEST.index(f.kind) if f.kind in _WEAKEST else -1)

    def close(self) -> None:
        """Wait for the decompositions under way, and for what was begun beside a sweep and never taken."""
        try:
            self.finisher.close()
        finally:
            if self.settings.device.type == "cuda":
                with suppress(RuntimeError):  # where the device itself has failed, that was raised before
                    torch.cuda.synchronize(self.settings.device)
