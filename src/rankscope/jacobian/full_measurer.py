"""Measures whole Jacobians: each cut point alone through products with it, or all of them by one sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from rankscope._base.checks import choice_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import MeasurementError, UsageError, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.progress import Reporter
from rankscope.jacobian.batch import BatchMeasurer
from rankscope.jacobian.checkpoint import image_key
from rankscope.jacobian.finish import Finished, Finisher
from rankscope.jacobian.full_bytes import product_bytes
from rankscope.jacobian.full_plan import Asked, Plan, plan_for
from rankscope.jacobian.full_seconds import expected_seconds
from rankscope.jacobian.full_work import compared_by, work_of
from rankscope.jacobian.kept_cut_points import KeptCut, KeptCutPoints, call_key
from rankscope.jacobian.other_paths import absent_from
from rankscope.jacobian.products import Pair, products_of, unchecked_products
from rankscope.jacobian.shared_passes import SharedPasses, pushed_by_trace
from rankscope.jacobian.sharing_cut_points import SharedCutPoints
from rankscope.linear.derivative import Runners, Settings
from rankscope.linear.runner import NotCalledError
from rankscope.slicing import All, ColumnsLike, ModuleCall, Sample
from rankscope.spectra import Tolerance
from rankscope.spectra.density import AnySpectrum, SpectralDensity
from rankscope.spectra.lanczos import NotFiniteError, SquaredMap
from rankscope.spectra.matrix_free import WAYS, Lanczos, spectrum_of_products
from rankscope.views.sentences import sentence

__all__ = ["Full", "FullMeasurer", "full_settings"]

_ROUNDING, _KINKED = 1e-4, 2e-2  # of a mark; the second where rounding may have put a unit on another side of its kink
_SHARE = 4  # of the budget, products take a quarter and what is kept of them the rest


@dataclass(frozen=True)
class Full:
    """What the measurers of whole Jacobians share: what was asked, and whom to tell what is under way."""

    asked: Asked
    say: Callable[[str], None] = lambda text: None
    expect: Callable[[Fact], None] = lambda fact: None
    kept: KeptCutPoints | None = None
    shared: SharedCutPoints | None = None

    def telling(
        self,
        report: Reporter,
        state: Callable[[], tuple[int, int | None, str]],
        kept: KeptCutPoints | None = None,
        shared: SharedCutPoints | None = None,
    ) -> Full:
        """The same, with words for a reporter; ``state`` gives samples done, of how many, and whose turn it is."""

        def say(text: str) -> None:
            done, total, name = state()
            report(done, total, f"{name}: {text}")

        def expect(fact: Fact) -> None:
            report.say(sentence(fact))
            report(*state()[:2], sentence(fact))

        return replace(self, say=say, expect=expect, kept=kept, shared=shared)


def full_settings(columns: ColumnsLike, method: Lanczos | str, tolerance: Tolerance) -> Full | None:
    """What ``method`` asks of the full Jacobian; ``None`` where the columns are others.

    Raises
    ------
    UsageError
        For an unknown method, or one beside columns that are not all.
    """
    if not isinstance(method, Lanczos):
        choice_of(method, "method", WAYS)
    if isinstance(columns, All) or (isinstance(columns, str) and columns == "all"):
        return Full(Asked(method, tolerance))
    if method == "auto":
        return None
    raise UsageError(
        f"{parameter('method')} is {method!r}, which measures the full Jacobian; give {parameter('columns', 'all')} "
        f"with it, or leave {parameter('method')} out"
    )


class FullMeasurer(BatchMeasurer):
    """Use it inside ``measuring``. One sample at a time, unless one sweep of all columns is the cheaper exact way."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[ModuleCall],
        settings: Settings,
        full: Full,
        finisher: Finisher | None = None,
        runners: Runners | None = None,
    ) -> None:
        super().__init__(model, calls, settings, finisher, runners)
        self.full, self.asked = full, full.asked
        self.plan: Plan | None = None
        self._expected: Fact | None = None
        self._passes: SharedPasses | None = None
        self._at_once = False  # what other processes measure is waited for before the sample is left

    @property
    def way(self) -> Fact:
        """How tangents were pushed: products take the plain way where they do not push by the traced network."""
        shown = self._shown.derivative
        if self.plan is None or self.plan.swept or shown.method is None or pushed_by_trace(shown):
            return super().way
        return Fact(FactKind.PUSHED, {"name": shown.method.name})

    def another(
        self, calls: Sequence[ModuleCall], settings: Settings | None = None, runners: Runners | None = None
    ) -> FullMeasurer:
        chosen = settings or self.settings
        other = FullMeasurer(self.runner.model, calls, chosen, self.full, self.finisher, runners)
        other._at_once = True
        return other

    @property
    def by_cut_points(self) -> bool:
        """Whether a sample's cut points are measured one by one; also where no sample has shown that yet."""
        return self.plan is None or not self.plan.swept

    def batch_size(self, sample: Sample, remaining: int) -> int:
        together = super().batch_size(sample, remaining)
        return together if self._planned(sample) and self.plan is not None and self.plan.swept else 1

    def _planned(self, sample: Sample) -> bool:
        """Make the plan with the first sample that calls every cut point."""
        if self.plan is not None:
            return True
        try:
            with self.runner.hooked():
                rows = [out.numel() for out in self.runner.outputs(sample, sample.x)]
        except NotCalledError:
            return False
        names, columns = [call.name for call in self.calls], sample.x[0].numel()
        budget = self.settings.budget * (_SHARE - 1) // _SHARE
        self.plan = plan_for(names, rows, columns, self.asked, budget, self.settings.dtype)
        return True

    def _alone(self, sample: Sample) -> Callable[[], list[Finished]]:
        if self.plan is not None and self.plan.swept:
            return super()._alone(sample)
        absent = absent_from(self.runner, sample)
        if absent:
            return self._paths.without(self, sample, absent)
        try:
            return self._measured(sample)
        except NotCalledError:
            return self._paths.uncertified(self, sample)

    def _measured(self, sample: Sample) -> Callable[[], list[Finished]]:
        if self.derivative.method is None:
            with self.runner.hooked():
                self.derivative.prepare(sample)
        self._planned(sample)
        assert self.plan is not None
        if self.plan.swept:
            return super()._alone(sample)
        shared = self.full.shared
        if self._expected is None and (shared is None or shared.writes):
            passes, compared = self._passes_of(sample), compared_by(self.derivative.certificate)
            seconds = expected_seconds(self.plan, passes, compared) / (1 if shared is None else shared.company.size)
            self._expected = self.plan.fact(seconds, product_bytes(self.plan, passes))
            self._say_once(self._expected)
            self.full.expect(self._expected)
        if shared is not None and shared.index is not None:
            return self._shared_out(sample, shared, shared.index)
        done = self._by_products(sample)
        return lambda: [done]

    def _by_products(self, sample: Sample) -> Finished:
        cuts: list[KeptCut] = []
        kept = self.full.kept
        image = "" if kept is None or kept.store.folder is None else image_key(sample)
        for place, call in enumerate(self.calls):
            self._say_place(place)
            cut = self._read(place, sample, image)
            if cut is None:
                cut = self._cut(place, sample)
                if kept is not None:
                    kept.write(image, call_key(call), cut)
            self._passes_of(sample).done(place)
            cuts.append(cut)
        self._passes = None
        return self._put_together(cuts)

    def _passes_of(self, sample: Sample) -> SharedPasses:
        """The passes that its cut points share; those of the sample before are held no longer."""
        if self._passes is None or self._passes.sample is not sample:
            self._passes = SharedPasses(self.derivative, sample, self.settings.budget // _SHARE, range(len(self.calls)))
        return self._passes

    def _say_place(self, place: int) -> None:
        self.full.say(f"{self.calls[place].name} ({place + 1} of {len(self.calls)})")

    def _put_together(self, cuts: Sequence[KeptCut]) -> Finished:
        for cut in cuts:
            self._say_once(*cut.facts)
        return Finished(
            [cut.spectrum for cut in cuts],
            max((cut.kinks for cut in cuts), default=0),
            reasons={place: cut.reason for place, cut in enumerate(cuts) if cut.reason},
            marks={place: cut.mark for place, cut in enumerate(cuts) if cut.mark is not None},
        )

    def _shared_out(self, sample: Sample, shared: SharedCutPoints, index: int) -> Callable[[], list[Finished]]:
        """The same where other processes measure some of the cut points; the first puts the sample together."""
        assert self.plan is not None
        plan = self.plan
        image, keys = image_key(sample), [call_key(call) for call in self.calls]
        before: dict[str, KeptCut] = {}

        def read() -> list[str]:
            found = {key: self._read(place, sample, image) for place, key in enumerate(keys)}
            before.update({key: cut for key, cut in found.items() if cut is not None})
            return list(before) if self.full.kept is None or self.full.kept.store.trusted else []

        done = shared.done_before(image, read)
        compared = compared_by(self.derivative.certificate)
        cost = [work_of(plan, place, compared).cost for place in range(len(keys))]
        # deeper cut points take longer at as many products
        for place in sorted(range(len(keys)), key=lambda place: (cost[place], place), reverse=True):
            if keys[place] not in done and shared.claim(keys[place]):
                self._say_place(place)
                shared.give(image, keys[place], self._cut(place, sample))
            self._passes_of(sample).done(place)
        self._passes = None
        if not shared.writes:
            return lambda: [Finished([], 0, elsewhere=True)]

        def finished() -> list[Finished]:
            cuts = [before[key] if key in done else shared.wait_for(index, image, key) for key in keys]
            return [self._put_together(cuts)]

        if not self._at_once:
            return finished
        made = finished()
        return lambda: made

    def _read(self, place: int, sample: Sample, image: str) -> KeptCut | None:
        """What an interrupted run kept of this cut point, the first of them beside a new product."""
        if self.full.kept is None:
            return None
        cut = self.full.kept.read(image, call_key(self.calls[place]))
        if cut is None or self.full.kept.confirmed:
            return cut
        if not self._agrees(place, sample, cut.mark, cut.kinks):
            self.full.kept.distrust(self.calls[place].name)
            return None
        self.full.kept.confirmed = True
        return cut

    def confirms(self, sample: Sample, marks: Mapping[int, float], kinks: int) -> bool:
        self.batch_size(sample, 1)
        if absent_from(self.runner, sample) or self.plan is None or self.plan.swept or self.derivative.method is None:
            return False  # no method: in the other precision it takes another path
        return all(self._agrees(place, sample, mark, kinks) for place, mark in marks.items())

    def _agrees(self, place: int, sample: Sample, mark: float | None, kinks: int) -> bool:
        if mark is None:
            return False
        try:
            new = _mark(unchecked_products(self._passes_of(sample), place).squared())
        except MeasurementError:
            return False
        return new is not None and abs(new - mark) <= (_KINKED if kinks else _ROUNDING)

    def _cut(self, place: int, sample: Sample) -> KeptCut:
        """One cut point, measured."""
        try:
            pair = products_of(self._passes_of(sample), place)
            mark = _mark(pair.work)
            spectrum = self._spectrum(pair)
        except (NotCalledError, UsageError):
            raise  # of a call that is not made: one precision takes another path, no number can be trusted
        except NotFiniteError:
            return KeptCut(None, 0, None)
        except MeasurementError as error:
            return KeptCut(None, 0, None, str(error))
        return KeptCut(spectrum, pair.flips, mark, facts=tuple(self._facts_of(pair, self.calls[place].name)))

    def _spectrum(self, pair: Pair) -> AnySpectrum:
        assert self.plan is not None
        spectrum = spectrum_of_products(
            pair.work,
            self.asked.method,
            tolerance=self.asked.tolerance,
            exact=pair.exact,
            dense=pair.dense,
            memory_budget=self.plan.budget,
        )
        if isinstance(spectrum, SpectralDensity) and self.derivative.certificate.kind is not FactKind.PROBES:
            others = tuple(f for f in spectrum.facts if f.kind is not FactKind.PRODUCTS_CHECKED)
            spectrum = replace(spectrum, facts=others)
        return spectrum

    def _facts_of(self, pair: Pair, name: str) -> Iterator[Fact]:
        dtype = dtype_name(pair.work.dtype)
        if pair.vanishes:
            yield Fact(FactKind.UNDERFLOW, {"where": name, "dtype": dtype})
        elif pair.blurred:
            yield Fact(FactKind.NO_ESTIMATE, {"where": name})
        elif not pair.certified:
            yield Fact(FactKind.PRODUCTS_UNCHECKED, {"dtype": dtype}, caution=True)
        work = pair.products[0]
        self.chunk = max(self.chunk, work.chunk or 0)
        if work.replayed is not None and work.replayed.refused:
            yield Fact(FactKind.NOT_RECORDED, {"where": name, "reason": work.replayed.refused})
        less = [products.chunk or 1 for products in pair.products if products.pushes_less]
        less += [] if self._passes is None else self._passes.less_at_once()
        alone = any(products.pulls_less for products in pair.products)
        if less or alone:
            yield Fact(FactKind.SMALLER_CHUNK, {"where": name, "chunk": min(less, default=0), "alone": alone})


def _mark(operator: SquaredMap) -> float | None:
    """log₂ of gᵀJᵀJg for one seeded g; ``None`` where it is zero."""
    generator = torch.Generator().manual_seed(0x3A7C)
    drawn = torch.randn(operator.size, 1, generator=generator, dtype=torch.float64).to(operator.device)
    value = float((drawn * operator.once(drawn)).sum())
    return math.log2(value) + 2 * (operator.exponent or 0) if value > 0 else None
