"""Cut points that only later samples call: the first sample's path does not lead to them.

What a name such as ``"all"`` stands for is resolved over all samples. One plain pass of each sample says which calls it
makes; those that the first sample does not make are traced and measured on the samples that make them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rankscope.jacobian.layer import Layer
from rankscope.jacobian.measurers import Measurers, layout
from rankscope.linear.returned import without_derivative
from rankscope.linear.tracing import Chosen, as_measured, traced
from rankscope.slicing import CutPointsLike, ModuleCall, Sample, Stretch, Trace, called, on_this_path
from rankscope.spectra.density import AnySpectrum

__all__ = ["LaterCalls"]

_Key = tuple[str, int]
_WITH_OUTPUT = ("blocks", "all")  # the words that stand for the network's output too


@dataclass
class _Found:
    """One cut point: its call, what mixes before it, the cut points before it, and its spectra."""

    call: ModuleCall
    mixes: Stretch
    before: list[tuple[object, ...]]
    spectra: dict[int, AnySpectrum | None] = field(default_factory=dict)


class LaterCalls:
    """``look`` at every sample, then ``measure`` those that lead elsewhere, then put the ``layers`` in their places.

    Use ``look`` and ``measure`` inside ``measuring``. ``unmeasured`` says what was not measured, and why. Afterwards
    ``named`` and ``names`` say what calls are called in the result.
    """

    def __init__(self, measurers: Measurers, chosen: Chosen, wanted: CutPointsLike) -> None:
        self.measurers, self.model, self.wanted = measurers, measurers.model, wanted
        self.found, self.calls, self.waiting = chosen.trace, chosen.calls, set(chosen.waiting)
        self._groups: dict[frozenset[_Key], list[tuple[int, Sample, Sample]]] = {}
        self._calls: dict[tuple[object, ...], _Found] = {}
        self._output_of: dict[int, str] = {}  # by sample, the cut point that returned the network's output
        self._known: dict[tuple[object, ...], bool] = {}  # by layout, whether no sample of it makes calls of its own
        self.unmeasured: dict[str, str] = {}
        self.kinks: dict[int, int] = {}

    def look(self, index: int, given: Sample, sample: Sample) -> None:
        """Remember a sample that makes calls of its own; ``sample`` is it as it is measured.

        Samples of a layout all make the same calls where its trace shows that no value decides them: then its first
        sample has shown that there are none. But a trace shows nothing of what follows the last cut point.
        """
        key = layout(sample)
        if self._known.get(key, True) and self.measurers.one_path(sample):
            if key not in self._known:
                self._known[key] = self.measurers.nothing_follows(sample)
            if self._known[key]:
                return
        new = called(self.model, lambda: self.measurers.returned(sample), self.found) - self.found.called
        if new:
            self._known[key] = False
            self._groups.setdefault(new, []).append((index, given, sample))

    def measure(self) -> None:
        """Measure the calls found, each on the samples that make it."""
        measurers = self.measurers
        for new, samples in self._groups.items():
            path = traced(self.model, samples[0][1], measurers.settings.dtype)
            selected, still = on_this_path(self.model, path, self.wanted)
            self.waiting &= set(still)
            every = [c for c in selected if c.depends]
            output = path.stands_for_output(every)
            stands = [] if output is None else self.named([output])
            self._output_of |= {index: stands[0].name if stands else "" for index, _, _ in samples}
            self._one_output(path, output, [c for c in every if c.of_network])
            measured = {_identity(c) for c in self.calls}  # the network's own output is, whichever path leads to it
            chosen = [c for c in every if (c.key.module, c.key.call) in new and _identity(c) not in measured]
            if not chosen:
                continue
            self.unmeasured |= self._without_derivative(samples[0][1], chosen)
            named = self.named(every)
            for k, (call, mixes) in enumerate(zip(every, path.mixes(every), strict=True)):
                if call in chosen:
                    before = [_identity(earlier) for earlier in every[:k]]
                    self._calls.setdefault(_identity(call), _Found(named[k], mixes, before))
            own = Measurers(self.model, chosen, measurers.settings, measurers.finisher, measurers.full)
            for index, _, sample in samples:
                measurer = own.of(sample)
                measurer.batch_size(sample, 1)
                finished = measurer.measure([sample])()[0]
                self.kinks[index] = finished.kinks
                for k, call in enumerate(chosen):
                    one = self._calls[_identity(call)]
                    if k in finished.reasons:
                        self.unmeasured.setdefault(one.call.name, finished.reasons[k])
                    if k not in finished.uncalled:
                        one.spectra[index] = finished.spectra[k]
            measurers.join(own)
        self.unmeasured |= dict.fromkeys(sorted(self.waiting), "no sample calls it")

    def _one_output(self, path: Trace, output: ModuleCall | None, own: list[ModuleCall]) -> None:
        """Where one module returns the network's output on the first sample's path and another on this, it has a row.

        Its spectra are those of the modules that returned it.
        """
        first = self.found.stands_for_output(self.calls)
        if self.wanted not in _WITH_OUTPUT or path.output is None or output is None or first is None or own:
            return
        if not first.of_network and _identity(first) != _identity(output):
            self._calls.setdefault(_identity(path.output), _Found(path.output, Stretch(0), [_identity(output)]))

    @property
    def output(self) -> str:
        """The name of the row that holds the network's output of all samples, where no module returned it of all."""
        return next((one.call.name for one in self._calls.values() if one.call.of_network and not one.call.part), "")

    def _without_derivative(self, given: Sample, calls: list[ModuleCall]) -> dict[str, str]:
        dtype = self.measurers.settings.dtype
        return as_measured(self.model, given, dtype, lambda s: without_derivative(self.model, s, calls))[0]

    def named(self, calls: Iterable[ModuleCall]) -> list[ModuleCall]:
        """Calls under their names in the result: numbered where any sample calls the module twice.

        So names do not depend on which sample came first.
        """
        repeated = {module for made in (self.found.called, *self._groups) for module, index in made if index > 0}
        return [
            replace(call, name=call.numbered if call.key.module in repeated and not call.of_network else call.bare)
            for call in calls
        ]

    @property
    def names(self) -> dict[str, str]:
        """By the name that a call has on the first sample, its name in the result."""
        every = self.found.nameable or self.found.calls
        return {call.name: one.name for call, one in zip(every, self.named(every), strict=True)}

    def placed(self, layers: list[Layer], count: int, columns: int) -> list[Layer]:
        """The measured layers, as ``named``, with those of later samples among them, each behind what it follows."""
        placed = list(layers)
        name_of = {_identity(call): call.name for call in self.named(self.calls)}
        name_of |= {identity: one.call.name for identity, one in self._calls.items()}
        for one in sorted(self._calls.values(), key=lambda one: one.call.of_network):
            if one.call.of_network and not one.call.part:
                self._complete(one, placed, count)
            row = tuple(one.spectra.get(i) for i in range(count))
            if all(s is None for s in row):
                calling = " that calls it" if len(one.spectra) < count else ""
                self.unmeasured.setdefault(
                    one.call.name, f"its Jacobian has NaN or infinite entries on every image{calling}"
                )
                continue
            rows = max(s.shape[0] for s in row if s is not None)
            without = tuple(i for i in range(count) if i not in one.spectra)
            layer = Layer(one.call.name, rows, columns, one.call.true_cut, row, one.mixes, without)
            names = [x.name for x in placed]
            earlier = [names.index(name_of[b]) for b in one.before if name_of.get(b) in names]
            behind = max(earlier, default=-1) + 1
            placed.insert(len(names) if one.call.of_network else behind, layer)
        return placed

    def _complete(self, one: _Found, layers: list[Layer], count: int) -> None:
        """Of other samples the network's output is what some module returned, and was measured there."""
        stands = self.found.stands_for_output(self.found.calls)
        by_name = {layer.name: layer for layer in layers}
        for index in range(count):
            layer = by_name.get(self._output_of.get(index, "" if stands is None else self.named([stands])[0].name))
            if index not in one.spectra and layer is not None and index not in layer.uncalled:
                one.spectra[index] = layer.spectra[index]


def _identity(call: ModuleCall) -> tuple[object, ...]:
    return tuple(call.key)
