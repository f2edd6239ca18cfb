"""Measure a batch of images: choose the method and chunk once, then sweep, decompose and certify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rankscope._base.errors import MeasurementError
from rankscope._base.facts import Fact, FactKind
from rankscope.jacobian.budget import bytes_per_tangent, chunk_for
from rankscope.jacobian.checks import ADJOINT_LIMIT, adjoint_error, lower_precision_inside
from rankscope.jacobian.finish import Finished, Finisher
from rankscope.jacobian.linearise import Linearised, same_call
from rankscope.jacobian.methods import METHODS, Method, choose_method
from rankscope.jacobian.reference import Certified, Reference
from rankscope.jacobian.rounded import Rounded
from rankscope.jacobian.runner import NotCalledError, Runner
from rankscope.jacobian.secant import FunctionCheck, against_the_function, secant_direction
from rankscope.jacobian.sharing import APART, derivative_across, worst_gap
from rankscope.jacobian.sweep import Push, Sweep, SweepResult
from rankscope.slicing import Columns, ModuleCall, Sample, guarded

__all__ = ["BatchMeasurer", "Settings", "join"]

_CARRIED = 1e-2  # of the largest entry: rounding to float32 gives 1e-6, a range that is too small gives 1
_NAMED = 3  # of what a call changes
_PROBES = 6  # the certificate's bound fails with probability 10^-6
_LINEARISED = "linearised network"  # its name among the ways to push tangents
_AGREE = 1e-4  # of a cut point's largest entry; a kink on the other side would show as far more
_MOST_IMAGES = 64
_ABREAST = 16  # images whose float64 passes run together; more gain nothing
_TRIES = 2  # batches that could not be swept together before none is tried any more
_SHARE = 4  # of the budget's J storage, images that share a sweep take at most a quarter


@dataclass(frozen=True)
class Settings:
    """What does not change from image to image."""

    chunk_size: int | Literal["auto"]
    budget: int
    certify: bool
    device: torch.device
    dtype: torch.dtype
    columns: Columns
    through: bool = False
    """Whether the model turns gradients off inside (``Trace.through``)."""


def join(samples: Sequence[Sample]) -> Sample:
    """Samples of one shape as one ``Sample`` whose first dimension counts images."""
    if len(samples) == 1:
        return samples[0]
    return replace(samples[0], x=torch.cat([s.x for s in samples]))


def _takes_tensors(sample: Sample) -> bool:
    """Whether the call takes tensors beside the one that is differentiated."""
    return any(isinstance(v, Tensor) for v in tree_leaves(dict(sample.extra)))


class BatchMeasurer:
    """Use it inside ``measuring``. What the first sample shows (method, reference, sharing) holds for the others."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[ModuleCall],
        settings: Settings,
        finisher: Finisher | None = None,
    ) -> None:
        self.settings, self.calls = settings, calls
        keys = [c.key for c in calls]
        self.runner = Runner(model, keys, settings.device, settings.dtype, through=settings.through)
        other = torch.float64 if settings.dtype == torch.float32 else torch.float32
        self.exact = Runner(model, keys, settings.device, other, through=settings.through) if settings.certify else None
        self.method: Method | None = None
        self.push: Push | None = None
        self.reference: Reference | None = None
        self._exact_method: Method | None = None
        self._narrow = False
        self._rounded = False
        self.finisher = finisher or Finisher(settings.device, settings.dtype)
        self.linearised: Linearised | None = None
        self.difference = 0.0
        self.failed_methods: list[Fact] = []
        self.facts: list[Fact] = []
        self.adjoint: float | None = None
        self._in_doubt: int | None = None
        self.certificate = Fact(FactKind.KEPT_IMAGES if settings.certify else FactKind.NOT_CERTIFIED)
        self.chunk = 0
        self._batch: int | None = None
        self._coupled = 0
        self._chunks: dict[tuple[int, ...], int] = {}
        self._elsewhere: tuple[frozenset[int], BatchMeasurer] | None = None

    @property
    def way(self) -> Fact:
        """How tangents were pushed."""
        if self.method is None:
            return Fact(FactKind.KEPT_IMAGES)
        if self.linearised is not None:
            return Fact(FactKind.LINEARISED, {"name": self.method.name, "difference": self.difference})
        return Fact(FactKind.PUSHED, {"name": self.method.name})

    def batch_size(self, sample: Sample, remaining: int) -> int:
        """How many images share a sweep."""
        if self._batch is None:
            with self.runner.hooked():
                self._prepare(sample)
                self._batch = self._shared(sample)
        return max(min(self._batch, remaining), 1)

    def _prepare(self, sample: Sample) -> None:
        """On the first sample: the method, the adjoint check, and whether a float64 reference exists."""
        direction = secant_direction(sample.x[0])
        self.runner.rows = [None] * len(self.calls)

        def refuse(method: Method, out: tuple[Tensor, ...]) -> str:
            """Second derivatives of a custom backward can be zero without an error; reverse mode itself tells."""
            if not method.twice:
                return ""
            with method.kernels():
                error, where = adjoint_error(self.runner, sample, direction, out)
            wrong = error is None or not error <= ADJOINT_LIMIT
            return (
                f"disagrees with reverse mode at {where!r}: a backward formula is not differentiable" if wrong else ""
            )

        self.method, out, self.failed_methods = choose_method(self.runner, sample, direction[None], refuse)
        self.push = self.method
        replay = self.settings.device.type == "cuda" and not _takes_tensors(sample)
        self._linearise(sample, direction, out, replay)
        with self.method.kernels():
            self.adjoint, where = adjoint_error(self.runner, sample, direction, out)
        if self.adjoint is None:
            self.facts.append(Fact(FactKind.REVERSE_UNCHECKED, {"reason": where}))
        elif not self.adjoint <= ADJOINT_LIMIT:
            wrong = {"error": self.adjoint, "where": where}
            self.facts.append(Fact(FactKind.REVERSE_DISAGREES, wrong, caution=True))
            # the probes are of one mode too, so they cannot tell which of the two is right: nothing from here on is
            # certified
            self._in_doubt = next(k for k, call in enumerate(self.calls) if where in (call.name, call.key[0]))
        if self.exact is not None:
            self._check_exact(sample, direction, out)
        if self.exact is not None:
            self.reference = self._reference(sample, replay)
        self._check_secant(sample, direction, out)
        self._check_state(sample)

    def _check_state(self, sample: Sample) -> None:
        """Whether what a call leaves in the model changes the next one; a cache does not."""
        state = guarded(self.runner.model)
        if state is None or not state.changed:
            return
        self.runner.rows = [None] * len(self.calls)
        first, second, again = (self.runner.outputs(sample, sample.x, fresh=f) for f in (True, False, True))
        same = worst(worst_gap(a, b) for a, b in zip(again, first, strict=True)) == 0
        try:
            other = worst(worst_gap(a, b) for a, b in zip(second, first, strict=True)) > APART
        finally:
            state.restore()
        if same and other:
            named = tuple(sorted(state.changed))
            self.facts.append(Fact(FactKind.KEEPS_STATE, {"where": named[:_NAMED]}))

    def _linearise(self, sample: Sample, direction: Tensor, expected: tuple[Tensor, ...], replay: bool) -> None:
        """Take the faster path where it gives what the plain one gave; say why where it does not."""
        assert self.method is not None
        fast = Linearised(self.runner, self.method, replay=replay)
        try:
            found = fast(self.runner, sample, direction[None])
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.failed_methods.append(Fact(FactKind.WAY_FAILED, {"name": _LINEARISED, "reason": reason[:200]}))
            return
        self.difference = worst(worst_gap(a, b) for a, b in zip(found, expected, strict=True))
        if not self.difference <= _AGREE * (1 if self.settings.dtype == torch.float32 else 1e-7):
            differs = {"name": _LINEARISED, "other": self.method.name, "difference": self.difference}
            self.failed_methods.append(Fact(FactKind.WAY_DIFFERS, differs))
            return
        self.linearised = fast
        self.push = fast

    def _give_up_linearised(self, reason: str) -> None:
        """A trace that was the model on the first image may not be on this one: the plain way is."""
        self.failed_methods.append(Fact(FactKind.WAY_GIVEN_UP, {"name": _LINEARISED, "reason": reason[:200]}))
        self.linearised, self.push = None, self.method

    def _single_carries(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> bool:
        """Whether float32 gives about what float64 gave: its range may be too small, or a constant be of float64."""
        assert self.exact is not None
        assert self.method is not None
        self.exact.rows = [None] * len(self.calls)
        try:
            with self.exact.hooked():
                one = sample.to(self.settings.device, torch.float32)
                found = self.method(self.exact, one, direction[None].to(one.x))
        except (RuntimeError, TypeError, ValueError, MeasurementError):
            return False
        gaps = [worst_gap(a.double(), b.reshape(a.shape)) for a, b in zip(found, out, strict=True)]
        return bool(worst(gaps) <= _CARRIED)

    def _check_exact(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> None:
        assert self.exact is not None
        down = self.settings.dtype == torch.float64
        if down and not self._single_carries(sample, direction, out):
            self._rounded = True
            self.exact = Runner(self.runner.model, self.runner.keys, self.settings.device, torch.float64)
        try:
            with self.exact.hooked():
                one = sample.to(self.settings.device, self.exact.dtype)
                self._narrow = lower_precision_inside(
                    self.runner if down else self.exact, sample.to(self.settings.device, torch.float64)
                )
                self._exact_method = self._works_in(self.exact, one)
        except (RuntimeError, TypeError, ValueError, MeasurementError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.facts.append(Fact(FactKind.NO_FLOAT64, {"reason": reason}, caution=True))
            self.certificate = Fact(FactKind.NOT_IN_FLOAT64)
            self.exact = None
            return
        if down and not self._narrow:
            self.certificate = Fact(FactKind.SCALED_PROBES, {"probes": _PROBES})
        elif self._narrow:
            self.certificate = Fact(FactKind.NARROW_PROBES, {"probes": _PROBES})
            self.facts.append(Fact(FactKind.CASTS_DOWN, caution=True))
        else:
            self.certificate = Fact(FactKind.PROBES, {"probes": _PROBES, "failure": 10.0**-_PROBES})

    def _check_secant(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> None:
        """Whether the derivative is the function's own: in float64 where that is at hand, else by wider steps."""
        double = self.settings.dtype == torch.float64
        runner, method, narrow = self.runner, self.method, not double
        if not double and self.exact is not None and self._exact_method is not None:
            runner, method, narrow = self.exact, self._exact_method, False
        assert method is not None
        one = sample.to(self.settings.device, runner.dtype)
        found, why = FunctionCheck("unclear"), "float32 alone resolves no step that is short enough"
        try:
            with nullcontext() if runner is self.runner else runner.hooked():
                # with a certificate this same pass in float64 has been made for it
                if not narrow and (self._narrow if self.exact is not None else lower_precision_inside(runner, one)):
                    narrow, why = True, "the model casts to lower precision inside, which drowns a short step"
                if not narrow:
                    why = "the function bends or jumps within every step that rounding leaves room for"
                found = against_the_function(runner, method, one, direction, out, narrow=narrow)
        except (RuntimeError, TypeError, ValueError, MeasurementError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if found.verdict == "leaves":
            leak = {"where": found.where, "gap": found.gap}
            self.facts.append(Fact(FactKind.LEAVES_COMPUTATION, leak, caution=True))
        elif found.verdict == "random":
            # two draws are not one function
            self.facts = [f for f in self.facts if f.kind is not FactKind.REVERSE_DISAGREES]
            self.facts.append(Fact(FactKind.RANDOM_MODEL, {"where": found.where}, caution=True))
        elif found.verdict == "unclear":
            self.facts.append(Fact(FactKind.FUNCTION_UNCHECKED, {"where": found.where or "", "reason": why}))

    def _works_in(self, exact: Runner, sample: Sample) -> Method:
        """How to push tangents in the other precision: the plain way where it works there too (kernels differ)."""
        assert self.method is not None
        direction = torch.ones_like(sample.x[:1])
        exact.rows = [None] * len(self.calls)
        try:
            self.method(exact, sample, direction)
        except (RuntimeError, TypeError, ValueError):
            return choose_method(exact, sample, direction)[0]
        return self.method

    def _reference(self, sample: Sample, replay: bool) -> Reference:
        assert self.exact is not None
        assert self._exact_method is not None
        replay = replay and self._exact_method is METHODS[0]
        assert self.method is not None
        arithmetic = Rounded if self._rounded else nullcontext
        return Reference(self.runner, self.exact, self._exact_method, self.method, replay=replay, arithmetic=arithmetic)

    def _shared(self, sample: Sample) -> int:
        """How many images one sweep has room for; one where no certificate of each image alone watches over them."""
        if self.reference is None or _takes_tensors(sample):
            return 1
        self.runner.rows = [None] * len(self.calls)
        single = self.runner.outputs(sample, sample.x)
        row = self.settings.columns.count(tuple(sample.x.shape[1:])) * sample.x.element_size()
        stored = sum(o.numel() for o in single) * row
        half = self.settings.budget // 2
        each = bytes_per_tangent(self.runner, sample, linear=False)
        fits = min(self.settings.budget // _SHARE // max(stored, 1), half // each)  # one tangent of every image
        # in float64, all probes and the image itself
        self.reference.abreast = max(min(half // (2 * (_PROBES + 1) * each), _ABREAST), 1)
        if fits < 2 or any(c.shape[:1] != (1,) for c in self.calls):
            return 1
        return int(min(fits, _MOST_IMAGES))

    def measure(self, samples: Sequence[Sample]) -> Callable[[], list[Finished]]:
        """Sweep some images, together where that changes nothing. What is returned gives one ``Finished`` an image."""
        if len(samples) > 1:
            done = self._together(samples)
            if done is not None:
                return done
            self._coupled += 1
            if self._coupled >= _TRIES:
                self._batch = 1
        parts = [self._alone(s) for s in samples]
        return lambda: [image for part in parts for image in part()]

    def _alone(self, sample: Sample) -> Callable[[], list[Finished]]:
        try:
            result, found = self._swept_and_certified(sample)
        except NotCalledError:
            absent = self._absent(sample)
            if not absent:  # the other precision takes another path than this one: no number can be trusted
                raise
            return self._on_its_own_path(sample, absent)
        return self._submit(sample, result, found)

    def _absent(self, sample: Sample) -> frozenset[int]:
        """The cut points that one plain call with this sample does not reach."""
        self.runner.rows = [None] * len(self.calls)
        try:
            with self.runner.hooked():
                self.runner.outputs(sample, sample.x)
        except NotCalledError as error:
            return error.absent
        return frozenset()

    def _on_its_own_path(self, sample: Sample, absent: frozenset[int]) -> Callable[[], list[Finished]]:
        """A sample that does not call some cut points: the others are measured, with every check made on this path.

        One such measurer is kept, as each holds the weights in the certificate's precision.
        """
        count = len(self.calls)
        places = [k for k in range(count) if k not in absent]
        if not places:
            return lambda: [Finished([None] * count, 0, tuple(range(count)))]
        if self._elsewhere is None or self._elsewhere[0] != absent:
            self._elsewhere = None  # before the next one takes its room
            chosen = [self.calls[k] for k in places]
            self._elsewhere = (absent, BatchMeasurer(self.runner.model, chosen, self.settings, self.finisher))
        other = self._elsewhere[1]
        other.batch_size(sample, 1)
        done = other.measure([sample])
        self.facts += [fact for fact in other.facts if fact not in self.facts]
        self.failed_methods += [fact for fact in other.failed_methods if fact not in self.failed_methods]
        both = self.adjoint is not None and other.adjoint is not None
        self.adjoint = worst(e for e in (self.adjoint, other.adjoint) if e is not None) if both else None
        return lambda: [image.among(places, count) for image in done()]

    def _swept_and_certified(self, sample: Sample) -> tuple[SweepResult, Certified | None]:
        """One sweep and what the probes find of it; once more by the plain path where a trace is not the model here.

        The probes are the model's own tangents at each image, so with them a traced network needs no look of its own:
        one pass of the model by itself takes as long as a whole sweep of a small network on a GPU. Where they leave
        a doubt, that look decides.
        """
        with self.runner.hooked():
            sweep, result, probes = self._swept(sample)
        found = self._certify(sample, sweep, result, probes)
        if self.linearised is None or not self._probes_compare or (found is not None and found.strayed <= APART):
            return result, found
        with self.runner.hooked():
            self._compare(sample)
            if self._traced:  # rounding alone, as the model has it itself
                return result, found
            sweep, result, probes = self._swept(sample)
        return result, self._certify(sample, sweep, result, probes)

    @property
    def _traced(self) -> bool:
        """Whether a traced network is in use; a comparison may have dropped it since it was last asked."""
        return self.linearised is not None

    @property
    def _probes_compare(self) -> bool:
        """Whether float64 probes of the model itself watch over every image."""
        return self.reference is not None and self.settings.dtype == torch.float32 and not self._narrow

    def _together(self, samples: Sequence[Sample]) -> Callable[[], list[Finished]] | None:
        """The images in one sweep; ``None`` where they change each other, or where that cannot be seen."""
        assert self.method is not None
        first = samples[0]
        if not all(same_call(first, s) for s in samples[1:]):
            return None
        batch = join(samples)
        try:
            with self.runner.hooked():
                if derivative_across(self.runner, self.method, batch):
                    return None
            result, found = self._swept_and_certified(batch)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, MeasurementError):
            return None  # whatever stands in the way of a batch, each image alone decides whether it can be measured
        if found is None or not found.apart <= APART or not bool(torch.isfinite(found.lengths).all()):
            return None
        return self._submit(batch, result, found)

    def _swept(self, sample: Sample) -> tuple[Sweep, SweepResult, Tensor | None]:
        """One sweep of all columns; the traced network stands down where it is not the model at these images."""
        columns = self.settings.columns.count(tuple(sample.x.shape[1:]))
        probes = None
        if self.reference is not None:
            generator = torch.Generator().manual_seed(0xCE27)
            probes = torch.randn(_PROBES, columns, generator=generator, dtype=torch.float64)
        self.runner.rows = [None] * len(self.calls)
        self.chunk = self._chunk(sample, columns)
        if self.linearised is not None:
            try:
                if not self._probes_compare:
                    self._compare(sample)
                sweep = self._sweep(sample)
                if self.linearised is not None:
                    return sweep, sweep.run(sample, probes), probes
            except (torch.OutOfMemoryError, NotCalledError):
                raise
            except Exception as error:  # a trace of these images runs the model's own code, which may raise anything
                self._give_up_linearised((str(error).strip().splitlines() or [type(error).__name__])[0])
        self.chunk = self._chunk(sample, columns)
        sweep = self._sweep(sample)
        return sweep, sweep.run(sample, probes), probes

    def _compare(self, sample: Sample) -> None:
        """Outputs and one tangent of the traced network beside the model's own, for every image."""
        assert self.linearised is not None
        assert self.method is not None
        images = len(sample.x)
        direction = secant_direction(sample.x[0])[None]
        self.runner.rows = [None] * len(self.calls)
        outputs = self.runner.outputs(sample, sample.x)
        expected = self.method(self.runner, sample, direction)
        found = self.linearised(self.runner, sample, direction)
        single = self.settings.dtype == torch.float32
        values = worst(worst_gap(a, b, images) for a, b in zip(self.linearised.outputs, outputs, strict=True))
        tangents = worst(worst_gap(a, b, images) for a, b in zip(found, expected, strict=True))
        if not values <= (APART if single else APART * 1e-7):
            self._give_up_linearised(f"its outputs differ from the model's by {values:.1e} of the largest entry")
        elif not tangents <= (_AGREE if single else _AGREE * 1e-7):
            self._give_up_linearised(f"differs from {self.method.name} by {tangents:.1e} of the largest entry")
        else:
            self.difference = max(self.difference, tangents)

    def _certify(self, sample: Sample, sweep: Sweep, result: SweepResult, probes: Tensor | None) -> Certified | None:
        if self.reference is None or probes is None:
            return None
        # a float64 sweep is compared with float32, which errs by 2^29 more; 16 for what need not scale exactly. Where
        # the model casts down inside, its error is that of what it casts to
        scale = 1.0
        if self.settings.dtype == torch.float64 and not self._narrow:
            # rounding each result leaves out what sums within an operator lose: 2^9 for √(2^18) terms
            scale = 2.0**-20 if self._rounded else 2.0**-25
        traced = None if self.linearised is None else self.linearised.outputs
        return self.reference.certify(sample, sweep, result, probes, scale, traced)

    def _submit(self, sample: Sample, result: SweepResult, found: Certified | None) -> Callable[[], list[Finished]]:
        columns = self.settings.columns.count(tuple(sample.x.shape[1:]))
        lengths, flips = (None, None) if found is None else (found.lengths, found.flips)
        if lengths is not None and self._in_doubt is not None:
            lengths = lengths.clone()
            lengths[self._in_doubt :] = torch.nan
        return self.finisher.submit(result, lengths, flips, len(sample.x), columns)

    def _chunk(self, sample: Sample, columns: int) -> int:
        if self.settings.chunk_size != "auto":
            return min(self.settings.chunk_size, columns)
        shape = tuple(sample.x.shape)
        if shape not in self._chunks:
            each = bytes_per_tangent(self.runner, sample, linear=self.linearised is not None)
            self._chunks[shape] = chunk_for(columns, each, self.settings.budget // 2, self.settings.device)
        return self._chunks[shape]

    def _sweep(self, sample: Sample) -> Sweep:
        assert self.method is not None
        assert self.push is not None
        shape = tuple(sample.x.shape[1:])
        return Sweep(
            self.runner,
            self.settings.columns,
            shape,
            self.method,
            self.push,
            chunk=self.chunk,
            budget=self.settings.budget,
        )


def worst(gaps: Iterable[float]) -> float:
    """The largest, where NaN is larger than any number; 0 of none."""
    return max(gaps, key=lambda g: float("inf") if g != g else g, default=0.0)
