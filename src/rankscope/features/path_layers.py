"""What ``cut_points`` stands for on paths that the first sample does not take: a longer text, another branch.

A layer that only later samples call is measured from the first of them on, and so on all of them. Whether it belongs to
what was asked for is decided there, once: what an earlier sample called and did not choose stays out, since that sample
passed it unmeasured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn

from rankscope._base.errors import RankscopeError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.counted_rows import with_rows_of_samples
from rankscope.features.cut_names import Chosen, is_plain
from rankscope.features.hooks import counting_calls, inference, resolve_layer, spelling
from rankscope.slicing import CutPointsLike, Sample
from rankscope.slicing.batches import run_forward

__all__ = ["ChosenLayers", "Entry", "PathLayers"]

_OF_LAYERS = {
    FactKind.RANDOM_MODEL: "where",
    FactKind.ROWS_NOT_SAMPLES: "names",
    FactKind.SKETCHED_LAYER: "name",
    FactKind.NOT_CALLED: "names",
    FactKind.CALLED_ONCE: "names",
    FactKind.NO_ROWS: "names",
}
"""Where facts that are found while layers are measured name them."""


class Entry(NamedTuple):
    """One layer: its name while it is measured, and its module."""

    name: str
    module: str
    need: int
    """How many calls of the module a sample needs to give it: 0 where the first sample did."""
    base: str
    """How ``name`` names the module."""
    call: int
    """Which of its calls, from 1; 0 for the model's own output."""

    def named(self, called: int) -> str:
        """Its name in a record, where a sample calls the module so many times at most.

        The calls of a module have numbers if any sample calls it twice, in whichever order samples come.
        """
        if not self.call:
            return self.name
        end = self.name.removeprefix(self.base).removeprefix(f"#{self.call}")
        return f"{self.base}#{self.call}{end}" if max(called, self.call) > 1 else f"{self.base}{end}"

    @classmethod
    def of(cls, kept: Sequence[Any]) -> Entry:
        """As files have it; those of earlier versions have three values."""
        name, module, need = str(kept[0]), str(kept[1]), int(kept[2])
        if len(kept) > 3:
            return cls(name, module, need, str(kept[3]), int(kept[4]))
        first = name.startswith(f"{module}#") and name.removeprefix(f"{module}#").partition(".")[0].partition(":")[0]
        return cls(name, module, need, module, 1 if first == "1" else 0)


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that some samples showed, in order of depth.

    ``seen`` counts by module the most calls in one pass; ``waiting`` is what was asked for under which none of these
    samples calls anything.
    """

    found: tuple[Entry, ...]
    seen: Mapping[str, int] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    left_out: tuple[Entry, ...] = ()
    """What a sample chose after another had called it and not chosen it: it went unmeasured there."""

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.found]

    @property
    def in_records(self) -> dict[str, str]:
        """By layer, its name in a record."""
        return {one.name: one.named(self.seen.get(one.module, 0)) for one in self.found}

    @property
    def never_called(self) -> list[str]:
        """Of what was asked for, what no sample calls; a call that leaves no row is one."""
        unmade = [one.name for one in self.found if self.seen.get(one.module, 0) < max(one.call, 1)]
        return [*unmade, *sorted(self.waiting)]

    def told(self, facts: Iterable[Fact]) -> list[Fact]:
        """Facts on layers, with their names in a record."""
        names = self.in_records

        def renamed(fact: Fact) -> Fact:
            key = _OF_LAYERS.get(fact.kind)
            if key is None:
                return fact
            value = fact.values[key]
            new = names.get(value, value) if isinstance(value, str) else tuple(names.get(one, one) for one in value)
            return replace(fact, values={**fact.values, key: new})

        return list(map(renamed, facts))

    @property
    def late(self) -> list[Fact]:
        """Which layers were left out, with their names in a record."""
        names = tuple(one.named(self.seen.get(one.module, 0)) for one in self.left_out)
        return [Fact(FactKind.CHOSEN_LATE, {"names": names})] if names else []

    def joined(self, other: ChosenLayers) -> ChosenLayers:
        """What these samples and those that follow them show, each of which was looked at by itself.

        A layer that one of them called and did not choose went unmeasured there: it is left out.
        """
        merged = _merged(self.found, other.found)
        both = [one for one in merged if self._may_hold(one) and other._may_hold(one)]
        late = dict.fromkeys([*self.left_out, *other.left_out, *(one for one in merged if one not in both)])
        seen = Counter(self.seen) | Counter(other.seen)
        return ChosenLayers(tuple(both), seen, self.waiting & other.waiting, tuple(late))

    def _may_hold(self, entry: Entry) -> bool:
        return entry in self.found or self.seen.get(entry.module, 0) < entry.need

    def to_dict(self) -> dict[str, Any]:
        kept = {"found": list(self.found), "seen": dict(self.seen), "waiting": sorted(self.waiting)}
        return {**kept, "left_out": list(self.left_out)} if self.left_out else kept

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ChosenLayers:
        found = tuple(map(Entry.of, plain["found"]))
        late = tuple(map(Entry.of, plain.get("left_out", ())))
        return cls(found, Counter(plain["seen"]), frozenset(plain["waiting"]), late)


class PathLayers:
    """Watches which modules a pass calls, and chooses again where one is called that was not, or more often.

    ``choose`` gives what one sample shows, of a model whose first sample calls each module so many times. Of layers
    that were named one by one nothing further is chosen, but further calls: a module's name stands for all of them.
    The name of a layer is that of one call of its module, and does not depend on which samples came before but the
    first, so that ``ChosenLayers`` of several processes can be joined. Use it inside ``inference``, as a context
    manager; ``begin`` comes before each pass and ``take_in`` after it.
    """

    def __init__(
        self,
        model: nn.Module,
        first: Sample,
        wanted: CutPointsLike | None,
        choose: Callable[[Sample, Mapping[str, int]], Chosen],
    ) -> None:
        self.model, self.wanted, self.choose = model, wanted, choose
        self.written_out = wanted is not None and is_plain(model, wanted)  # then no look at a sample is needed
        called = Counter[str]() if self.written_out else _calls_of(model, first)
        found = choose(first, called)
        names, self.facts = with_rows_of_samples(model, first, found.names, wanted, called)
        entries, modules = list(self._entries(names)), dict(model.named_modules(remove_duplicate=False))
        without_need = tuple(dict.fromkeys(one._replace(need=0) for one in entries))
        self.first = self.layers = ChosenLayers(without_need, called, frozenset(found.waiting))
        spelled = [spelling(modules, name) for name in names]
        self._all_calls = [one for one, how in zip(entries, spelled, strict=True) if how and how.call is None]
        self._called: Counter[str] = Counter()
        self._stack = ExitStack()

    @classmethod
    def named(cls, model: nn.Module, names: Sequence[str]) -> PathLayers:
        """Layers written out, which need no look at a sample."""
        return cls(model, _NO_SAMPLE, list(names), lambda _sample, _times: Chosen(list(names), True, set()))

    def __enter__(self) -> PathLayers:
        named = {one.module for one in self.layers.found} if self.written_out else None
        self._called = self._stack.enter_context(counting_calls(self.model, named))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def begin(self) -> None:
        """A pass begins."""
        self._called.clear()

    def take_in(self, sample: Sample) -> list[str] | None:
        """The layers to measure beside those so far, from this pass on; ``sample`` is one of it.

        ``None`` where its path shows nothing new, else passes of the sample have been made.
        """
        before = self.layers
        if all(count <= before.seen.get(name, 0) for name, count in self._called.items()):
            return None
        called = Counter(self._called)  # before further passes are counted too
        seen = Counter(before.seen) | called
        if self.written_out:
            self.layers = replace(before, found=self._with_calls(before, seen), seen=seen)
            return [one.name for one in self.layers.found if one not in before.found]
        own: tuple[Entry, ...] = ()
        waiting, late = before.waiting, before.left_out
        try:
            found = self.choose(sample, self.first.seen)
            names, left_out = with_rows_of_samples(self.model, sample, found.names, self.wanted, called)
        except RankscopeError:  # nothing of this path can be chosen
            pass
        else:
            # calls that earlier samples made went unmeasured
            known = {one.name: one for one in before.found}
            entries = [known.get(one.name, one) for one in self._entries(names)]
            own = tuple(one for one in entries if one in before.found or one.need > before.seen.get(one.module, 0))
            late += tuple(one for one in entries if one not in own and one not in late)
            waiting &= found.waiting
            self.facts = (*self.facts, *(fact for fact in left_out if fact not in self.facts))
        self.layers = ChosenLayers(tuple(_merged(before.found, own)), seen, waiting, late)
        return [one.name for one in own if one not in before.found]

    def _with_calls(self, before: ChosenLayers, seen: Mapping[str, int]) -> tuple[Entry, ...]:
        """Layers that were named one by one, with every further call of those that were named without a number."""
        found = list(before.found)
        for first in self._all_calls:
            end = first.name.removeprefix(first.base)
            for k in range(2, seen.get(first.module, 0) + 1):
                one = first._replace(name=f"{first.base}#{k}{end}", need=k, call=k)
                if one.name not in {known.name for known in found}:
                    behind = f"{first.base}#{k - 1}{end}" if k > 2 else first.name
                    found.insert(next(i for i, known in enumerate(found) if known.name == behind) + 1, one)
        return tuple(found)

    def go_on(self, layers: ChosenLayers) -> None:
        """From what an earlier run had found."""
        self.layers = layers

    def _entries(self, names: Sequence[str]) -> Iterator[Entry]:
        """Each with its module, as ``named_modules`` names it first."""
        first = {id(module): name for name, module in self.model.named_modules()}
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for name in names:
            module, found = resolve_layer(self.model, name, modules).module, spelling(modules, name)
            if found is None or module is self.model:
                yield Entry(name, first[id(module)], 1, name, 0)
                continue
            call = found.call or 1
            if self.written_out and call == 1:  # one name for the first call, however it was written
                name = found.base + found.end
            yield Entry(name, first[id(module)], call, found.base, call)


def _calls_of(model: nn.Module, sample: Sample) -> Counter[str]:
    """How often one sample calls each module; nothing where it does not pass, which is said elsewhere."""
    with inference(model) as device, counting_calls(model) as called:
        try:
            run_forward(model, sample, device)
        except RankscopeError:
            called.clear()
        return Counter(called)


_NO_SAMPLE = Sample(torch.zeros(1), "no sample")


def _merged(names: Sequence[Entry], others: Sequence[Entry]) -> list[Entry]:
    """All names, each of the others behind the one that it follows there."""
    merged = list(names)
    for k, name in enumerate(others):
        if name not in merged:
            earlier = [merged.index(other) for other in others[:k] if other in merged]
            merged.insert(max(earlier, default=-1) + 1, name)
    return merged
