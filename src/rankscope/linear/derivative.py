"""How tangents are pushed through one model, as its first sample shows, and what the checks of it found."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rankscope._base.errors import MeasurementError, ModelError, first_line, is_out_of_memory, parameter, raise_ours
from rankscope._base.facts import Fact, FactKind
from rankscope.linear.budget import bytes_per_tangent
from rankscope.linear.by_torch import ByTorch
from rankscope.linear.checks import ADJOINT_LIMIT, adjoint_error, lower_precision_inside
from rankscope.linear.custom import wrongly_derived
from rankscope.linear.graphs import nothing_is_collected
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.linearise import Linearised
from rankscope.linear.methods import Method, choose_method, failed
from rankscope.linear.other_precision import OtherPrecision, in_other_precision
from rankscope.linear.runner import NotCalledError, Runner
from rankscope.linear.secant import FunctionCheck, against_the_function, secant_direction
from rankscope.slicing import Columns, ModelState, ModuleCall, Sample, guarded
from rankscope.slicing.apart import APART, worst_gaps
from rankscope.slicing.global_generators import GlobalGenerators
from rankscope.slicing.memory import draw_facts, state_facts, values_of
from rankscope.spectra import scaled_norms

__all__ = ["Derivative", "Runners", "Settings", "in_both_precisions", "takes_tensors"]

_LINEARISED = "linearised network"  # its name among the ways to push tangents
_HALF = ("float16", "bfloat16")
_AGREE = 1e-4  # of a cut point's largest entry; a kink on the other side would show as far more


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


def takes_tensors(sample: Sample) -> bool:
    """Whether the call takes tensors beside the one that is differentiated."""
    return any(isinstance(v, Tensor) for v in tree_leaves(dict(sample.extra)))


Runners: TypeAlias = tuple[Runner, Runner | None]


def in_both_precisions(model: nn.Module, calls: Sequence[ModuleCall], settings: Settings) -> Runners:
    """The sub-networks in the working precision and, for the certificate, in the other."""
    keys, where = [c.key for c in calls], settings.device
    other = torch.float64 if settings.dtype == torch.float32 else torch.float32
    runner = Runner(model, keys, where, settings.dtype, through=settings.through)
    if not settings.certify:
        return runner, None
    return runner, Runner(model, keys, where, other, through=settings.through, room=settings.budget)


class Derivative:
    """The derivative of one model's cut points. What the first sample shows holds for the others, unless they differ.

    ``prepare`` chooses the method, traces the network where that is faster, compares the two modes of differentiation
    and the function itself, and finds how the other precision runs. ``facts`` say what it found.
    """

    def __init__(
        self, model: nn.Module, calls: Sequence[ModuleCall], settings: Settings, runners: Runners | None = None
    ) -> None:
        self.settings, self.calls = settings, calls
        self.runner, self.exact = runners or in_both_precisions(model, calls, settings)
        self.method: Method | None = None
        self.linearised: Linearised | None = None
        self.difference = 0.0
        self.lengths: list[float] = []
        """About how long J·v is at each cut point."""
        self.rows = 0
        """Of all cut points together, at the first sample."""
        self.workspace: int | None = None
        """Estimated bytes of one tangent there (``bytes_per_tangent``); ``None`` where no pass has shown it."""
        self.failed_methods: list[Fact] = []
        self.facts: list[Fact] = []
        self.adjoint: float | None = None
        self.in_doubt: int | None = None
        """The first cut point that is not to be certified on any image."""
        self.certificate = Fact(FactKind.KEPT_IMAGES if settings.certify else FactKind.NOT_CERTIFIED)
        self._other: OtherPrecision | None = None
        self.casts = ""
        """The narrowest dtype below the working one that the model casts to inside."""
        self._replay = False

    @property
    def way(self) -> Fact:
        """How tangents were pushed."""
        if self.method is None:
            return Fact(FactKind.KEPT_IMAGES)
        if self.linearised is not None:
            return Fact(FactKind.LINEARISED, {"name": self.method.name, "difference": self.difference})
        return Fact(FactKind.PUSHED, {"name": self.method.name})

    @property
    def traced(self) -> bool:
        """Whether a traced network is in use; a comparison may have dropped it since it was last asked."""
        return self.linearised is not None

    @property
    def probes_compare(self) -> bool:
        """Whether float64 probes of the model itself watch over every image."""
        return self.exact is not None and self.settings.dtype == torch.float32

    @property
    def scale(self) -> float:
        """By how much the working precision errs less than the difference of the two precisions."""
        return 1.0 if self._other is None else self._other.scale

    def at(self, sample: Sample) -> LinearMap:
        """The Jacobian at a sample as it is measured, through the traced network where one is in use."""
        assert self.method is not None
        return LinearMap(self.runner, self.method, sample, self.linearised)

    def plain(self, sample: Sample) -> LinearMap:
        """The same by the model's own passes."""
        return replace(self.at(sample), traced=None)

    def other(self, sample: Sample) -> LinearMap | None:
        """What that is compared with: the Jacobian in the other precision; ``None`` where there is none."""
        return None if self._other is None else self._other.at(sample)

    @property
    def replays(self) -> bool:
        """Whether passes may be recorded on a GPU and replayed: a recording holds the call's other tensors."""
        return self._replay

    def prepare(self, sample: Sample, earlier: Linearised | None = None) -> None:
        """On the first sample: the method, the adjoint check, and whether the other precision runs.

        ``earlier`` is a traced network of the same runner: it is taken where it is the model at this sample too.

        Raises
        ------
        NotCalledError
            Where the sample does not call every cut point in both precisions. It leaves nothing behind: another sample
            may show what holds for the others.
        """
        before = {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        try:
            with nothing_is_collected():
                self._prepare(sample, earlier)
        except NotCalledError:
            vars(self).update(before)
            raise

    def _prepare(self, sample: Sample, earlier: Linearised | None) -> None:
        direction = secant_direction(sample.x[0])

        try:
            self.method, out, self.failed_methods = choose_method(self.runner, sample, direction[None])
        except MeasurementError as error:
            self._runs(sample, error)
            raise
        self.lengths = scaled_norms([o.reshape(-1) for o in out]).tolist()
        self.rows = sum(o.shape[-1] for o in out)
        self._replay = self.settings.device.type == "cuda" and not takes_tensors(sample)
        if not self._traced_before(sample, earlier):
            self._linearise(sample, direction, out, self._replay)
        self.casts = self._casts_inside(sample)
        watch = ByTorch()
        with self.method.kernels():
            self.adjoint, where = adjoint_error(self.runner, sample, direction, out, watch)
        if self.linearised is not None and watch.alone is not None:
            self.linearised.derived(sample, by_torch=watch.alone)
        if self.adjoint is None:
            self.facts.append(Fact(FactKind.REVERSE_UNCHECKED, {"reason": where}))
        elif not self.adjoint <= ADJOINT_LIMIT:
            wrong = {"error": self.adjoint, "where": where, "casts": self.casts}
            self.facts.append(Fact(FactKind.REVERSE_DISAGREES, wrong, caution=True))
            # the probes are of one mode too, so they cannot tell which of the two is right: nothing from here on is
            # certified
            self._doubt_from(where)
        if self.exact is not None:
            self._check_exact(sample, direction, out)
        self._check_secant(sample, direction, out)
        self._check_repeated(sample)

    def _runs(self, sample: Sample, error: MeasurementError) -> None:
        """Refuse the dtype where no derivative was found because the model itself does not run in it."""
        try:
            self.runner.outputs(sample, sample.x)
        except (RuntimeError, TypeError, ValueError) as raised:
            if is_out_of_memory(raised):
                return
            dtype, other = ("float64", "float32") if self.settings.dtype == torch.float64 else ("float32", "float64")
            raise ModelError(
                f"{type(self.runner.model).__name__} does not run in {dtype}: {first_line(raised)}; give "
                f"{parameter('dtype', other)}, or keep conversions to {other} and constants of it out of its forward"
            ) from error

    def _check_repeated(self, sample: Sample) -> None:
        """Whether a call changes the next one: by random numbers, or by what it leaves in the model."""
        state = guarded(self.runner.model)
        generators = GlobalGenerators(self.runner.model, self.settings.device)
        left = [] if state is None else self._left_behind(state, sample)
        if state is None or generators.moved:  # calls that draw nothing need no second look
            self._check_draws(sample)
        self.facts += left

    def _left_behind(self, state: ModelState, sample: Sample) -> list[Fact]:
        """Whether what a call leaves in the model changes the next one, at a cut point or anywhere in its output."""
        try:
            return state_facts(state, lambda fresh: self.runner.everything(sample, fresh=fresh))
        except Exception:  # what follows the last cut point need not run in this dtype, nor at all
            return state_facts(state, lambda fresh: self.runner.outputs(sample, sample.x, fresh=fresh))

    def _linearise(self, sample: Sample, direction: Tensor, expected: tuple[Tensor, ...], replay: bool) -> None:
        """Take the faster path where it gives what the plain one gave; say why where it does not."""
        assert self.method is not None
        fast = Linearised(self.runner, self.method, replay=replay)
        try:
            found = fast(self.runner, sample, direction[None])
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            self.failed_methods.append(failed(_LINEARISED, error))
            return
        self.difference = float(worst_gaps(found, expected))
        if not self.difference <= _AGREE * (1 if self.settings.dtype == torch.float32 else 1e-7):
            differs = {"name": _LINEARISED, "other": self.method.name, "difference": self.difference}
            self.failed_methods.append(Fact(FactKind.WAY_DIFFERS, differs))
            return
        self.linearised = fast

    def _traced_before(self, sample: Sample, earlier: Linearised | None) -> bool:
        """Take a network that was traced at another sample if it gives what the model gives here."""
        if earlier is None or earlier.method is not self.method:
            return False
        said = len(self.failed_methods)
        self.linearised = earlier
        try:
            self.compare(sample)
        except Exception:  # the trace may not run on this sample at all
            self.linearised = None
        del self.failed_methods[said:]  # a new trace decides
        return self.traced

    def modes_agree(self, sample: Sample) -> bool:
        """Whether a reverse pass of a sample that was swept through the traced network could show rounding alone.

        A model that casts down inside has too much of that.
        """
        if self.linearised is None or self.casts:
            return False
        with self.runner.hooked():
            return self.linearised.modes_agree(self.runner, sample)

    def give_up_linearised(self, reason: str) -> None:
        """A trace that was the model on the first image may not be on this one: the plain way is."""
        self.failed_methods.append(Fact(FactKind.WAY_GIVEN_UP, {"name": _LINEARISED, "reason": reason[:200]}))
        self.linearised = None

    def compare(self, sample: Sample) -> None:
        """Outputs and one tangent of the traced network beside the model's own, for every image."""
        assert self.linearised is not None
        assert self.method is not None
        direction = secant_direction(sample.x[0])[None]
        outputs = self.runner.outputs(sample, sample.x)
        expected = self.method(self.runner, sample, direction)
        found = self.linearised(self.runner, sample, direction)
        self.is_the_model(self.linearised.outputs, outputs, found, expected, len(sample.x))

    def is_the_model(
        self,
        values: Sequence[Tensor],
        own_values: Sequence[Tensor],
        tangents: Sequence[Tensor],
        own_tangents: Sequence[Tensor],
        images: int = 1,
    ) -> bool:
        """Whether outputs and tangents of the traced network are the model's own; it is given up where they are not."""
        assert self.method is not None
        single = self.settings.dtype == torch.float32
        apart, bent = (float(worst_gaps(*p, images)) for p in ((values, own_values), (tangents, own_tangents)))
        if not apart <= (APART if single else APART * 1e-7):
            self.give_up_linearised(f"its outputs differ from the model's by {apart:.1e} of the largest entry")
        elif not bent <= (_AGREE if single else _AGREE * 1e-7):
            self.give_up_linearised(f"differs from {self.method.name} by {bent:.1e} of the largest entry")
        else:
            self.difference = max(self.difference, bent)
        return self.traced

    def _casts_inside(self, sample: Sample) -> str:
        """What the model casts down to; the same pass shows what one tangent takes."""
        found = ""

        def run() -> None:
            nonlocal found
            found = lower_precision_inside(self.runner, sample)

        try:
            self.workspace = bytes_per_tangent(self.runner, sample, linear=False, run=run)
        except Exception:  # what cannot run under both looks may run under the one
            self.workspace = None
            try:
                run()
            except (RuntimeError, TypeError, ValueError):  # what cannot run under a dispatch mode
                return ""
        return found

    def _check_exact(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> None:
        assert self.exact is not None
        assert self.method is not None
        try:
            self._other, facts = in_other_precision(
                self.runner, self.exact, self.method, sample, casts=self.casts, tangents=(direction, out)
            )
        except NotCalledError:  # of this sample alone: another may lead to the same calls in both precisions
            raise
        except Exception as error:  # the model's own code
            raise_ours(error)
            reason = first_line(error)
            self.facts.append(Fact(FactKind.NO_FLOAT64, {"reason": reason}, caution=True))
            self.certificate = Fact(FactKind.NOT_IN_FLOAT64)
            self.exact = self._other = None
            return
        self.facts += facts
        self.exact, self.certificate = self._other.runner, self._other.certificate

    def _check_draws(self, sample: Sample) -> None:
        """Whether the numbers that the model draws change what a cut point returns: by further calls, if it draws."""
        names = [call.name for call in self.calls]

        def call() -> dict[str, list[Tensor]]:
            outputs = self.runner.outputs(sample, sample.x)
            return {name: values_of([out]) for name, out in zip(names, outputs, strict=True)}

        generators = GlobalGenerators(self.runner.model, self.settings.device)
        for fact in draw_facts(generators, call(), call):
            if fact.kind is FactKind.RANDOM_MODEL:
                self._is_random(fact)
            else:
                self.facts.append(fact)

    def _is_random(self, fact: Fact) -> None:
        """Two draws are not one function: nothing from that cut point on is certified, whatever two passes gave."""
        told = (FactKind.REVERSE_DISAGREES, FactKind.RANDOM_MODEL)
        self.facts = [*(f for f in self.facts if f.kind not in told), fact]
        self._doubt_from(fact["where"])

    def _doubt_from(self, where: str) -> None:
        """Nothing from the first cut point of that name, or of that module, on is certified."""
        place = next(k for k, call in enumerate(self.calls) if where in (call.name, call.key[0]))
        self.in_doubt = place if self.in_doubt is None else min(self.in_doubt, place)

    def _check_secant(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> None:
        """Whether the derivative is the function's own: in float64 where that is at hand, else by wider steps."""
        double = self.settings.dtype == torch.float64
        runner, method, narrow = self.runner, self.method, not double
        if self._other is not None and (not double or self._other.widened):
            runner, method, narrow = self._other.runner, self._other.method, False
        assert method is not None
        one = sample.to(self.settings.device, runner.dtype)
        found, why = FunctionCheck("unclear"), "float32 alone resolves no step that is short enough"
        try:
            with nullcontext() if runner is self.runner else runner.hooked():
                if runner is self.runner and self.casts:
                    narrow, why = True, f"the model casts to {self.casts} inside, which drowns a short step"
                if not narrow:
                    why = "the function bends or jumps within every step that rounding leaves room for"
                if runner is not self.runner or self.casts not in _HALF:  # half precision drowns every step
                    found = against_the_function(runner, method, one, direction, out, narrow=narrow)
        except Exception as error:  # the model's own code
            raise_ours(error)
            why = first_line(error)
        if found.verdict == "leaves":
            leak = {"where": found.where, "gap": found.gap}
            self.facts.append(Fact(FactKind.LEAVES_COMPUTATION, leak, caution=True))
            # a stop-gradient is the model's own word on its derivative: that one is certified, and the fact says so
        elif found.verdict == "random":
            self._is_random(Fact(FactKind.RANDOM_MODEL, {"where": found.where}, caution=True))
        elif found.verdict == "unclear":
            self.facts.append(Fact(FactKind.FUNCTION_UNCHECKED, {"where": found.where or "", "reason": why}))

    def misled(self, sample: Sample) -> dict[int, str]:
        """The cut points of one image that a custom operator leads to whose backward is not its derivative there.

        Said once for all images. Where neither precision is float64 nothing can be looked at, and nothing is certified.
        """
        # one that casts down inside is looked at without its casts, as is the derivative that ranks are compared with
        other = self.settings.dtype != torch.float64 or (self._other is not None and self._other.widened)
        runner = self.exact if other else self.runner
        assert runner is not None
        one = sample.to(self.settings.device, runner.dtype)
        with runner.hooked():
            wrong = wrongly_derived(runner, one)
        if wrong and FactKind.CUSTOM_BACKWARD not in {fact.kind for fact in self.facts}:
            place = min(wrong)
            about = {"where": self.calls[place].name, "operator": wrong[place]}
            self.facts.append(Fact(FactKind.CUSTOM_BACKWARD, about, caution=True))
        return wrong
