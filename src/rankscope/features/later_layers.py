"""Outputs of layers for each call: also of layers that the first sample does not call, and of samples called alone."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor, nn

from rankscope._base.errors import CutPointError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.counted_rows import spelled, without_rows
from rankscope.features.cut_names import chosen_names, not_called
from rankscope.features.hooks import record_outputs
from rankscope.features.path_layers import Entry, PathLayers
from rankscope.features.path_passes import PathPasses
from rankscope.features.shared_pass import SharedPass
from rankscope.slicing import CutPointsLike, Sample
from rankscope.slicing.batches import run_forward
from rankscope.slicing.calls import Call
from rankscope.slicing.memory import forward_facts

__all__ = ["LayersOfSamples"]


class LayersOfSamples:
    """What ``cut_points`` stands for on every sample. Use it inside ``inference``.

    ``passes`` gives the outputs of the layers that the samples of a call lead to.
    """

    def __init__(self, model: nn.Module, sample: Sample, wanted: CutPointsLike, device: torch.device) -> None:
        self.model, self.wanted, self.device = model, wanted, device
        self.paths = PathLayers(model, sample, wanted, lambda one, times: chosen_names(model, one, wanted, times))
        self.sharing = SharedPass(model, device, self._pass)
        self._steps = PathPasses(self.paths, self.sharing, self._pass, self._keep)
        self.calling: Counter[str] = Counter()
        self.samples = 0
        self._stack = ExitStack()
        self._kept: list[dict[str, Tensor]] = []

    def __enter__(self) -> LayersOfSamples:
        self._stack.enter_context(self.paths)
        self._keep(self.paths.layers.names)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def passes(self, call: Call) -> Iterator[tuple[dict[str, Tensor], Call]]:
        """What the layers return for the samples of a call: of all in one pass, or of each where that changes them."""
        for found, part in self._steps.of(call):
            self.samples += len(part)
            self.calling.update(dict.fromkeys(found, len(part)))
            yield found, part

    @property
    def measured(self) -> list[str]:
        """The layers that have features to speak of: at least two samples call them, or they were named."""
        shown = [one for one in self.paths.layers.found if self.calling[one.name]]
        found = [one.name for one in shown if self.calling[one.name] > 1 or self._asked(one)]
        return found or [one.name for one in shown]

    @property
    def in_records(self) -> dict[str, str]:
        """Of the measured layers, their names in a record."""
        names = self.paths.layers.in_records
        return {name: names[name] for name in self.measured}

    def told(self, facts: Iterable[Fact]) -> list[Fact]:
        """Facts on layers with these names."""
        return self.paths.layers.told(facts)

    def _asked(self, entry: Entry) -> bool:
        """Whether the caller wrote the layer's name; of a module's name alone its first call."""
        return spelled(self.model, entry.name, self.wanted) and (entry.need < 2 or entry.name in self.wanted)

    def remembers(self, sample: Sample) -> list[Fact]:
        """Whether the model remembers its calls, or draws random numbers."""
        return forward_facts(self.model, sample, self.device, ChainMap(*self._kept))  # the hooks fill them again

    def found(self) -> list[Fact]:
        """What is to be said of the layers: those left out, that samples were called alone, and who calls which.

        Raises
        ------
        CutPointError
            Where no sample calls a layer that was named, or has a row of it.
        """
        names = self.paths.layers.names
        missing = [name for name in self.paths.layers.never_called if not self.calling[name]]
        if missing:
            raise CutPointError(f"layer {missing[0]!r} is never called in the forward pass; choose another cut point")
        facts = [*self.paths.facts, *(self.sharing.facts if self.samples > 1 else ())]
        facts += without_rows(self.model, self.wanted, names, self.calling)
        names = [name for name in names if self.calling[name]]
        measured = self.measured
        once = [name for name in names if name not in measured]
        if once:
            facts.append(Fact(FactKind.CALLED_ONCE, {"names": tuple(once)}))
        facts += not_called([name for name in names if name not in once], self.calling, self.samples)
        return [*self.paths.layers.told(facts), *self.paths.layers.late]

    def _pass(self, samples: Sample) -> dict[str, Tensor]:
        for kept in self._kept:
            kept.clear()
        run_forward(self.model, samples, self.device)
        return {name: output for kept in self._kept for name, output in kept.items()}

    def _keep(self, names: Sequence[str]) -> None:
        self._kept.append(self._stack.enter_context(record_outputs(self.model, names)))
