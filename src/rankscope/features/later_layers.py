"""Layers of each sample: also those that the first does not call, since its values or its shape lead elsewhere."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import CutPointError, RankscopeError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.counted_rows import spelled, with_rows_of_samples
from rankscope.features.cut_names import chosen_names, not_called
from rankscope.features.hooks import record_outputs
from rankscope.slicing import CutPointsLike, Sample
from rankscope.slicing.batches import run_forward
from rankscope.slicing.calls import Call
from rankscope.slicing.memory import forward_facts
from rankscope.slicing.value_reads import reads_values

__all__ = ["LayersOfSamples", "layers_of_all", "one_by_one"]


def one_by_one(model: nn.Module, sample: Sample, device: torch.device) -> bool:
    """Whether values of a sample decide what the model computes, so that no two of them can share a pass."""
    return reads_values(
        sample.x, lambda x: run_forward(model, Sample(x, sample.name, sample.keyword, sample.extra), device)
    )


class LayersOfSamples:
    """What ``cut_points`` stands for on every sample. Use it inside ``inference``.

    ``of`` makes a pass and gives the outputs of the layers that it calls; ``names`` are all of them so far, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        sample: Sample,
        wanted: CutPointsLike,
        device: torch.device,
        *,
        alone: bool | None = None,
    ) -> None:
        self.model, self.wanted, self.device = model, wanted, device
        self.alone = one_by_one(model, sample, device) if alone is None else alone
        found = chosen_names(model, sample, wanted)
        self.names, self.facts = with_rows_of_samples(model, sample, found.names, wanted)
        self.calling: Counter[str] = Counter()
        self.samples = 0
        self._waiting = found.waiting
        self._known = found.called
        self._now: Counter[str] = Counter()
        self._new: Counter[str] = Counter()
        self._stack = ExitStack()
        self._kept: list[dict[str, Tensor]] = []

    def __enter__(self) -> LayersOfSamples:
        self._keep(self.names)
        if self._known is not None:  # names that were written out need no look
            for name, module in self.model.named_modules():
                if self._known[name] != 1:  # what the first calls once keeps its plain name
                    handle = module.register_forward_pre_hook(self._sees(name))
                    self._stack.callback(handle.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def parts(self, call: Call) -> Iterator[Call]:
        """The passes of a call: the samples one by one where values decide."""
        if not self.alone or len(call) < 2:
            yield call
            return
        for i in range(len(call)):
            yield call.part(i, i + 1)

    def of(self, samples: Sample, first: Sample) -> dict[str, Tensor]:
        """The outputs of one pass, of the layers that these samples call; ``first`` is the first of them alone."""
        found = self._pass(samples)
        if self._new and self._take_in(first):
            found = self._pass(samples)
        self.samples += len(samples.x)
        self.calling.update(dict.fromkeys(found, len(samples.x)))
        return found

    @property
    def measured(self) -> list[str]:
        """The layers that have features to speak of: at least two samples call them, or they were named."""
        found = [name for name in self.names if self.calling[name] > 1 or spelled(self.model, name, self.wanted)]
        return found or self.names

    def remembers(self, sample: Sample) -> list[Fact]:
        """Whether the model remembers its calls, or draws random numbers."""
        return forward_facts(self.model, sample, self.device, ChainMap(*self._kept))  # the hooks fill them again

    def found(self) -> list[Fact]:
        """What is to be said of the layers: those left out, that samples were called alone, and who calls which.

        Raises
        ------
        CutPointError
            Where no sample calls a layer that was named.
        """
        missing = [name for name in (*self.names, *self._waiting) if not self.calling[name]]
        if missing:
            raise CutPointError(f"layer {missing[0]!r} is never called in the forward pass; choose another cut point")
        facts = list(self.facts)
        if self.alone and self.samples > 1:
            facts.append(Fact(FactKind.CALLED_ALONE))
        measured = self.measured
        once = [name for name in self.names if name not in measured]
        if once:
            facts.append(Fact(FactKind.CALLED_ONCE, {"names": tuple(once)}))
        return [*facts, *not_called([name for name in self.names if name not in once], self.calling, self.samples)]

    def _pass(self, samples: Sample) -> dict[str, Tensor]:
        for kept in self._kept:
            kept.clear()
        self._now.clear()
        run_forward(self.model, samples, self.device)
        return {name: output for kept in self._kept for name, output in kept.items()}

    def _keep(self, names: Sequence[str]) -> None:
        self._kept.append(self._stack.enter_context(record_outputs(self.model, names)))

    def _sees(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any) -> None:
            self._now[name] += 1
            if self._known is not None and self._now[name] > self._known[name]:
                self._new[name] = self._now[name]

        return hook

    def _take_in(self, sample: Sample) -> bool:
        """Choose among the calls of a sample that leads elsewhere; whether that gives further layers."""
        assert self._known is not None
        self._known |= self._new
        try:
            found = chosen_names(self.model, sample, self.wanted, self._known)
            own, left_out = with_rows_of_samples(self.model, sample, found.names, self.wanted)
        except RankscopeError:  # nothing more of it can be chosen: what the others call is measured
            return False
        finally:
            self._new.clear()  # these passes are no sample's own
        self._waiting &= found.waiting
        self.facts = (*self.facts, *(fact for fact in left_out if fact not in self.facts))
        further = [name for name in own if name not in self.names]
        self.names = _merged(self.names, own)
        if further:
            self._keep(further)
        return bool(further)


def _merged(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """All names, each of the others behind the one that it follows there."""
    merged = list(names)
    for k, name in enumerate(others):
        if name not in merged:
            earlier = [merged.index(other) for other in others[:k] if other in merged]
            merged.insert(max(earlier, default=-1) + 1, name)
    return merged


def layers_of_all(
    model: nn.Module, sample: Sample, wanted: CutPointsLike, calls: Iterable[Call], device: torch.device
) -> tuple[list[str], tuple[Fact, ...]]:
    """The layers that ``wanted`` stands for over all calls, the first of which is ``sample``; and those left out.

    For a model that takes its samples one by one.
    """
    with LayersOfSamples(model, sample, wanted, device, alone=True) as layers:
        for call in calls:
            for part in layers.parts(call):
                layers.of(part.rows(0, len(part), "a sample"), part.rows(0, 1, "a sample"))
        layers.found()
    return layers.names, layers.facts
