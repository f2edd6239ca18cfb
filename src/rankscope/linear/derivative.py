"""How tangents are pushed through one model, as its first sample shows, and what the checks of it found."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rankscope._base.checks import budget_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import MeasurementError, ModelError, first_line, is_out_of_memory, parameter, raise_ours
from rankscope._base.facts import Fact, FactKind
from rankscope.linear.checks import ADJOINT_LIMIT, adjoint_error, lower_precision_inside
from rankscope.linear.custom import wrongly_derived
from rankscope.linear.graphs import nothing_is_collected
from rankscope.linear.linear_map import LinearMap, works_in
from rankscope.linear.linearise import Linearised
from rankscope.linear.methods import Method, choose_method, failed
from rankscope.linear.rounded import Rounded
from rankscope.linear.runner import NotCalledError, Runner
from rankscope.linear.secant import FunctionCheck, against_the_function, length_of, secant_direction
from rankscope.slicing import Columns, ModuleCall, Sample, guarded
from rankscope.slicing.apart import APART, worst_gaps
from rankscope.slicing.memory import state_facts

__all__ = ["PROBES", "Derivative", "Runners", "Settings", "in_both_precisions", "takes_tensors"]

PROBES = 6  # the certificate's bound fails with probability 10^-6
_CARRIED = 1e-2  # of the largest entry: rounding to float32 gives 1e-6, a range that is too small gives 1
_MOST = 0.9  # of the free memory: what copies of all weights may take where there is no other way
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
        self.failed_methods: list[Fact] = []
        self.facts: list[Fact] = []
        self.adjoint: float | None = None
        self.in_doubt: int | None = None
        """The first cut point that is not to be certified on any image."""
        self.certificate = Fact(FactKind.KEPT_IMAGES if settings.certify else FactKind.NOT_CERTIFIED)
        self._exact_method: Method | None = None
        self.casts = ""
        """The narrowest dtype below the working one that the model casts to inside."""
        self._widened = False
        self._rounded = False
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
        """By how much the working precision errs less than the difference of the two precisions.

        A float64 sweep is compared with float32, which errs by 2^29 more; 16 for what need not scale exactly. Where the
        model casts down inside, it is compared with itself without the casts.
        """
        if self.settings.dtype != torch.float64 or self._widened:
            return 1.0
        # rounding each result leaves out what sums within an operator lose: 2^9 for √(2^18) terms
        return 2.0**-20 if self._rounded else 2.0**-25

    def at(self, sample: Sample) -> LinearMap:
        """The Jacobian at a sample as it is measured, through the traced network where one is in use."""
        assert self.method is not None
        return LinearMap(self.runner, self.method, sample, self.linearised)

    def plain(self, sample: Sample) -> LinearMap:
        """The same by the model's own passes."""
        return replace(self.at(sample), traced=None)

    def other(self, sample: Sample) -> LinearMap | None:
        """What that is compared with: the Jacobian in the other precision; ``None`` where there is none."""
        if self.exact is None or self._exact_method is None:
            return None
        arithmetic = Rounded if self._rounded else nullcontext
        there = sample.to(self.settings.device, self.exact.dtype)
        return LinearMap(self.exact, self._exact_method, there, arithmetic=arithmetic)

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
        self.lengths = [length_of(o) for o in out]
        self._replay = self.settings.device.type == "cuda" and not takes_tensors(sample)
        if not self._traced_before(sample, earlier):
            self._linearise(sample, direction, out, self._replay)
        self.casts = self._casts_inside(sample)
        with self.method.kernels():
            self.adjoint, where = adjoint_error(self.runner, sample, direction, out)
        if self.adjoint is None:
            self.facts.append(Fact(FactKind.REVERSE_UNCHECKED, {"reason": where}))
        elif not self.adjoint <= ADJOINT_LIMIT:
            wrong = {"error": self.adjoint, "where": where, "casts": self.casts}
            self.facts.append(Fact(FactKind.REVERSE_DISAGREES, wrong, caution=True))
            # the probes are of one mode too, so they cannot tell which of the two is right: nothing from here on is
            # certified
            self.in_doubt = next(k for k, call in enumerate(self.calls) if where in (call.name, call.key[0]))
        if self.exact is not None:
            self._check_exact(sample, direction, out)
        self._check_secant(sample, direction, out)
        self._check_state(sample)

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
                f"{parameter('dtype', other)}, or let it make its constants in the dtype of its input"
            ) from error

    def _check_state(self, sample: Sample) -> None:
        """Whether what a call leaves in the model changes the next one, at a cut point or anywhere in its output."""
        state = guarded(self.runner.model)
        if state is None:
            return
        try:
            self.facts += state_facts(state, lambda fresh: self.runner.everything(sample, fresh=fresh))
        except Exception:  # what follows the last cut point need not run in this dtype, nor at all
            self.facts += state_facts(state, lambda fresh: self.runner.outputs(sample, sample.x, fresh=fresh))

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
        images = len(sample.x)
        direction = secant_direction(sample.x[0])[None]
        outputs = self.runner.outputs(sample, sample.x)
        expected = self.method(self.runner, sample, direction)
        found = self.linearised(self.runner, sample, direction)
        single = self.settings.dtype == torch.float32
        values = float(worst_gaps(self.linearised.outputs, outputs, images))
        tangents = float(worst_gaps(found, expected, images))
        if not values <= (APART if single else APART * 1e-7):
            self.give_up_linearised(f"its outputs differ from the model's by {values:.1e} of the largest entry")
        elif not tangents <= (_AGREE if single else _AGREE * 1e-7):
            self.give_up_linearised(f"differs from {self.method.name} by {tangents:.1e} of the largest entry")
        else:
            self.difference = max(self.difference, tangents)

    def _single_carries(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> bool:
        """Whether float32 gives about what float64 gave: its range may be too small, or a constant be of float64."""
        assert self.exact is not None
        assert self.method is not None
        try:
            with self.exact.hooked():
                one = sample.to(self.settings.device, torch.float32)
                found = self.method(self.exact, one, direction[None].to(one.x))
        except Exception as error:  # the model's own code
            raise_ours(error)
            return False
        same_shape = [b.reshape(a.shape) for a, b in zip(found, out, strict=True)]
        return float(worst_gaps([a.double() for a in found], same_shape)) <= _CARRIED

    def _casts_inside(self, sample: Sample) -> str:
        try:
            return lower_precision_inside(self.runner, sample)
        except (RuntimeError, TypeError, ValueError):  # what cannot run under a dispatch mode
            return ""

    def _check_exact(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> None:
        assert self.exact is not None
        down = self.settings.dtype == torch.float64
        if down and not self.casts and not self._single_carries(sample, direction, out):
            self._rounded = True
            self.exact = Runner(
                self.runner.model, self.runner.keys, self.settings.device, torch.float64, room=self.settings.budget
            )
        try:
            self._set_exact_in_room(sample, down=down)
        except NotCalledError:  # of this sample alone: another may lead to the same calls in both precisions
            raise
        except Exception as error:  # the model's own code
            raise_ours(error)
            reason = first_line(error)
            self.facts.append(Fact(FactKind.NO_FLOAT64, {"reason": reason}, caution=True))
            self.certificate = Fact(FactKind.NOT_IN_FLOAT64)
            self.exact = None
            return
        if self.casts:
            self.facts.append(Fact(FactKind.CASTS_DOWN, {"to": self.casts}))
        if down and not self._widened:
            self.certificate = Fact(FactKind.SCALED_PROBES, {"probes": PROBES})
        else:
            self.certificate = Fact(FactKind.PROBES, {"probes": PROBES, "failure": 10.0**-PROBES})

    def _set_exact_in_room(self, sample: Sample, *, down: bool) -> None:
        """As ``_set_exact``; copies of all weights are held where the model does not run without them."""
        assert self.exact is not None
        given, weights = self.exact, self.exact.weights
        about = {"dtype": dtype_name(given.dtype), "bytes": weights.bytes, "budget": given.room}
        try:
            self._set_exact(sample, down=down)
        except NotCalledError:
            raise
        except Exception as error:  # the model's own code, which may ask a stand-in for what a tensor alone has
            raise_ours(error)
            room = budget_of(None, self.settings.device, share=_MOST, most=None)
            if not weights.on_demand or is_out_of_memory(error) or weights.bytes > room:
                raise
            weights.keep_all()
            self.exact = given
            self._set_exact(sample, down=down)
            self.facts.append(Fact(FactKind.WEIGHTS_HELD, {**about, "reason": first_line(error)}))
        if weights.on_demand:
            self.facts.append(Fact(FactKind.WEIGHTS_ON_DEMAND, about))

    def _set_exact(self, sample: Sample, *, down: bool) -> None:
        """The other precision, and how to push tangents there.

        A model that casts inside has the same error in float64 around it. It is compared with itself without the casts,
        and an error is raised where some cannot be left out: a comparison with them would be an estimate.
        """
        assert self.exact is not None
        double = sample.to(self.settings.device, torch.float64)
        own = self.runner if down else self.exact
        with nullcontext() if down else own.hooked():  # the working runner is hooked already
            self._widened = bool(self.casts) if down else _needs_widening(own, double)
        if self._widened:
            self.exact = own.without_casts()
        with self.exact.hooked():
            left = lower_precision_inside(self.exact, double) if self._widened else ""
            if left:
                raise MeasurementError(f"it casts to {left} inside")
            assert self.method is not None
            self._exact_method = works_in(self.exact, sample.to(self.settings.device, self.exact.dtype), self.method)

    def _check_secant(self, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> None:
        """Whether the derivative is the function's own: in float64 where that is at hand, else by wider steps."""
        double = self.settings.dtype == torch.float64
        runner, method, narrow = self.runner, self.method, not double
        if (not double or self._widened) and self.exact is not None and self._exact_method is not None:
            runner, method, narrow = self.exact, self._exact_method, False
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
            # two draws are not one function
            self.facts = [f for f in self.facts if f.kind is not FactKind.REVERSE_DISAGREES]
            self.facts.append(Fact(FactKind.RANDOM_MODEL, {"where": found.where}, caution=True))
        elif found.verdict == "unclear":
            self.facts.append(Fact(FactKind.FUNCTION_UNCHECKED, {"where": found.where or "", "reason": why}))

    def misled(self, sample: Sample) -> dict[int, str]:
        """The cut points of one image that a custom operator leads to whose backward is not its derivative there.

        Said once for all images. Where neither precision is float64 nothing can be looked at, and nothing is certified.
        """
        # one that casts down inside is looked at without its casts, as is the derivative that ranks are compared with
        other = self.settings.dtype != torch.float64 or (self._widened and self.exact is not None)
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


def _needs_widening(runner: Runner, sample: Sample) -> bool:
    """Whether the model casts below float64 inside, or makes narrower constants that float64 does not go with."""
    try:
        return bool(lower_precision_inside(runner, sample))
    except (RuntimeError, TypeError, ValueError):
        return True  # what fails for another reason fails without the casts too, and says so there
