"""Measure batches of images: sweep them together where that changes nothing, decompose and certify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from rankscope._base.errors import raise_ours
from rankscope._base.facts import Fact, FactKind, unsaid
from rankscope.jacobian.cast_doubt import say_range, without_doubt
from rankscope.jacobian.column_plan import ColumnPlan
from rankscope.jacobian.finish import Finished, Finisher
from rankscope.jacobian.other_paths import Measurer, OtherPaths, absent_from
from rankscope.jacobian.reference import Certified, Reference
from rankscope.jacobian.sweep import Sweep, SweepResult
from rankscope.jacobian.unsettled import Unsettled
from rankscope.linear.budget import bytes_per_tangent
from rankscope.linear.derivative import Derivative, Runners, Settings, takes_tensors
from rankscope.linear.linearise import same_call
from rankscope.linear.methods import METHODS, Method, reason_of
from rankscope.linear.other_precision import PROBES
from rankscope.linear.runner import NotCalledError
from rankscope.linear.sharing import Pulled, pull_apart
from rankscope.slicing import ModuleCall, Sample
from rankscope.slicing.apart import APART

__all__ = ["BatchMeasurer", "join"]

_MOST_IMAGES = 64
_ABREAST = 16  # images whose float64 passes run together; more gain nothing
_TRIES = 2  # batches that could not be swept together before none is tried any more
_SHARE = 4  # of the budget's J storage, images that share a sweep take at most a quarter


def join(samples: Sequence[Sample]) -> Sample:
    """Samples of one shape as one ``Sample`` whose first dimension counts images."""
    if len(samples) == 1:
        return samples[0]
    return replace(samples[0], x=torch.cat([s.x for s in samples]))


class BatchMeasurer:
    """Use it inside ``measuring``. What the first sample shows (method, reference, sharing) holds for the others."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[ModuleCall],
        settings: Settings,
        finisher: Finisher | None = None,
        runners: Runners | None = None,
    ) -> None:
        self.settings, self.calls = settings, calls
        self.derivative = Derivative(model, calls, settings, runners)
        self.runner = self.derivative.runner
        self.finisher = finisher or Finisher(settings.device, settings.dtype)
        self.chunk = 0
        self._reference: Reference | None = None
        self._batch: int | None = None
        self._swept_before = False
        self._coupled = 0
        self._plan = ColumnPlan(self.derivative)
        self._paths = OtherPaths()
        self._open: Unsettled | None = None

    @property
    def way(self) -> Fact:
        """How tangents were pushed."""
        return self._shown.derivative.way

    @property
    def method(self) -> Method | None:
        """How the model's own passes are made; ``None`` where nothing was measured."""
        return self._shown.derivative.method

    @property
    def adjoint(self) -> float | None:
        """By how much the two modes of differentiation disagree; ``None`` where reverse mode fails."""
        return self._shown.derivative.adjoint

    @property
    def certificate(self) -> Fact:
        """What bounds the error of those that are certified."""
        if self._shown is not self:
            return Fact(FactKind.NO_COMMON_PATH)
        return self.derivative.certificate

    @property
    def _shown(self) -> Measurer:
        """The one that has measured, where no sample could be compared with the other precision."""
        uncompared = self._paths.uncompared
        return self if self.derivative.method is not None or uncompared is None else uncompared

    def confirms(self, sample: Sample, marks: Mapping[int, float], kinks: int) -> bool:
        """Whether single products agree with those of an earlier run; there are none of a sweep."""
        return False

    def another(
        self, calls: Sequence[ModuleCall], settings: Settings | None = None, runners: Runners | None = None
    ) -> BatchMeasurer:
        """One of the same kind for other cut points, or with other settings."""
        return BatchMeasurer(self.runner.model, calls, settings or self.settings, self.finisher, runners)

    def batch_size(self, sample: Sample, remaining: int) -> int:
        """How many images share a sweep."""
        if self._batch is None:
            with self.runner.hooked():
                try:
                    self.derivative.prepare(sample)
                except NotCalledError:  # the first of its shape may take another path: it is swept on that
                    return 1
                self._batch = self._shared(sample)
        return max(min(self._batch, remaining), 1)

    def _shared(self, sample: Sample) -> int:
        """How many images one sweep has room for; one where no certificate of each image alone watches over them."""
        reference = self._compared(sample)
        if reference is None or takes_tensors(sample):
            return 1
        row = self.settings.columns.count(tuple(sample.x.shape[1:])) * sample.x.element_size()
        stored = self.derivative.rows * row
        half = self.settings.budget // 2
        each = self.derivative.workspace or bytes_per_tangent(self.runner, sample, linear=False)
        fits = min(self.settings.budget // _SHARE // max(stored, 1), half // each)  # one tangent of every image
        # in float64, all probes and the image itself
        reference.abreast = max(min(half // (2 * (PROBES + 1) * each), _ABREAST), 1)
        if fits < 2 or any(c.shape[:1] != (1,) for c in self.calls):
            return 1
        return int(min(fits, _MOST_IMAGES))

    def measure(self, samples: Sequence[Sample]) -> Callable[[], list[Finished]]:
        """Sweep some images, together where that changes nothing. What is returned gives one ``Finished`` an image."""
        self.settle()
        if len(samples) > 1:
            done = self._together(samples)
            if done is not None:
                return done
            self._coupled += 1
            if self._coupled >= _TRIES:
                self._batch = 1
        parts = []
        for sample in samples:
            self.settle()
            parts.append(self._alone(sample))
        return lambda: [image for part in parts for image in part()]

    def settle(self) -> None:
        """Decide what is open about the image swept last: another sweep takes its place."""
        last, self._open = self._open, None
        if last is not None:
            last.settle()

    def _alone(self, sample: Sample) -> Callable[[], list[Finished]]:
        try:
            if self.derivative.method is None:
                with self.runner.hooked():
                    self.derivative.prepare(sample)
            result, found = self._launched(sample)
        except NotCalledError:
            return self._on_another_path(sample)
        self._open = Unsettled(lambda: self._decided(sample, result, found))
        return self._open

    def _decided(self, sample: Sample, result: SweepResult, found: Certified | None) -> Callable[[], list[Finished]]:
        try:
            result, found = self._confirmed(sample, result, found)
        except NotCalledError:
            return self._on_another_path(sample)
        if found is not None and self.derivative.modes_agree(sample):
            return self._submit(sample, result, found, None, alike=True)
        return self._submit(sample, result, found, self._pulled_alone(sample, found))

    def _on_another_path(self, sample: Sample) -> Callable[[], list[Finished]]:
        absent = absent_from(self.runner, sample)
        return self._paths.without(self, sample, absent) if absent else self._paths.uncertified(self, sample)

    def _say_once(self, *found: Fact) -> None:
        self.derivative.facts += unsaid(found, self.derivative.facts)

    def _pulled(self, sample: Sample) -> Pulled | None:
        """Outputs pulled back to the inputs; ``None`` where images reach each other."""
        assert self.derivative.method is not None
        with self.runner.hooked():
            return pull_apart(self.runner, self.derivative.method, sample, self.derivative.lengths)

    def _pulled_alone(self, sample: Sample, found: Certified | None) -> Pulled | None:
        """The same of one image, where there is a certificate that it may cast doubt on, and reverse mode works."""
        if found is None or self.derivative.adjoint is None:
            return None
        try:
            return self._pulled(sample)
        except Exception as error:  # a custom backward is code of the model
            raise_ours(error)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return None

    def _launched(self, sample: Sample) -> tuple[SweepResult, Certified | None]:
        """One sweep and what the probes find of it."""
        if self._reference is not None and self.derivative.exact is not None:
            self._reference.start(sample, self._plan.combinations(sample).probes)
        with self.runner.hooked():
            result = self._swept(sample)
        if len(sample.x) == 1 and not self._swept_before:  # several together may yet be swept alone
            self.finisher.begin(result)  # later the device has a next sweep to go on with, which this would hold up
        self._swept_before = True
        return result, self._certify(sample, result)

    def _confirmed(
        self, sample: Sample, result: SweepResult, found: Certified | None
    ) -> tuple[SweepResult, Certified | None]:
        """The same where it stands; once more by the plain path where a trace is not the model here.

        The probes are the model's own tangents at each image, so with them a traced network needs no look of its own:
        one pass of the model by itself takes as long as a whole sweep of a small network on a GPU. Where they leave
        a doubt, that look decides.
        """
        if (
            self.derivative.linearised is None
            or not self.derivative.probes_compare
            or (found is not None and float(found.strayed) <= APART)
        ):
            return result, found
        with self.runner.hooked():
            self.derivative.compare(sample)
            if self.derivative.traced:  # rounding alone, as the model has it itself
                return result, found
        return self._launched(sample)

    def _together(self, samples: Sequence[Sample]) -> Callable[[], list[Finished]] | None:
        """The images in one sweep; ``None`` where they change each other, or where that cannot be seen."""
        assert self.derivative.method is not None
        first = samples[0]
        if not all(same_call(first, s) for s in samples[1:]):
            return None
        batch = join(samples)
        try:
            pulled = self._pulled(batch)
            if pulled is None:
                return None
            result, found = self._confirmed(batch, *self._launched(batch))
        except Exception as error:
            raise_ours(error)
            return None  # whatever stands in the way of a batch, each image alone decides whether it can be measured
        if found is None or not found.apart <= APART or not bool(torch.isfinite(found.lengths).all()):
            return None
        return self._submit(batch, result, found, pulled)

    def _swept(self, sample: Sample) -> SweepResult:
        """One sweep of all columns; the traced network stands down where it is not the model at these images."""
        columns = self.settings.columns.count(tuple(sample.x.shape[1:]))
        certified = self.derivative.exact is not None
        if self.derivative.linearised is not None:
            try:
                if not self.derivative.probes_compare:
                    self.derivative.compare(sample)
                self.chunk = self._plan.chunk(sample, columns)
                if self.derivative.linearised is not None:
                    return self._run(sample, certified=certified)
            except (torch.OutOfMemoryError, NotCalledError):
                raise
            except Exception as error:  # a trace of these images runs the model's own code, which may raise anything
                self.derivative.give_up_linearised(reason_of(error))
        self.chunk = self._plan.chunk(sample, columns)
        return self._run(sample, certified=certified)

    def _certify(self, sample: Sample, result: SweepResult) -> Certified | None:
        reference = self._compared(sample)
        if reference is None or self.derivative.exact is None:
            return None
        traced = None if self.derivative.linearised is None else self.derivative.linearised.outputs
        return reference.certify(sample, self._plan.combinations(sample).probes, result, self.derivative.scale, traced)

    def _submit(
        self,
        sample: Sample,
        result: SweepResult,
        found: Certified | None,
        pulled: Pulled | None,
        *,
        alike: bool = False,
    ) -> Callable[[], list[Finished]]:
        columns = self.settings.columns.count(tuple(sample.x.shape[1:]))
        lengths, flips = (None, None) if found is None else (found.lengths, found.flips)
        if found is not None:
            lengths = without_doubt(self.derivative, sample, result, found, pulled, alike=alike)
            say_range(self.derivative, found)
        return self.finisher.submit(result, lengths, flips, len(sample.x), columns)

    def _run(self, sample: Sample, *, certified: bool) -> SweepResult:
        sweep = Sweep(
            self.derivative.at(sample).within(self._plan.region(sample)),
            chunk=self.chunk,
            budget=self.settings.budget,
            combinations=self._plan.combinations(sample),
            dense=self._plan.dense(sample),
        )
        result = sweep.run(certified=certified)
        self._plan.saw(sample, dense=sweep.dense)
        return result

    def _compared(self, sample: Sample) -> Reference | None:
        """The certificate's passes in the other precision; ``None`` where nothing is certified."""
        if self._reference is None:
            other = self.derivative.other(sample)
            if other is not None:
                replay = self.derivative.replays and other.method is METHODS[0]
                self._reference = Reference(self.derivative.plain(sample), other, replay=replay)
        return self._reference
