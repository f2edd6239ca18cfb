"""What ``cut_points`` stands for on paths that the first sample does not take: a longer text, another branch.

A layer that only later samples call is measured from the first of them on, and so on all of them. Whether it belongs to
what was asked for is decided there, once: what an earlier sample called and did not choose stays out, since that sample
passed it unmeasured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import nn

from rankscope._base.errors import RankscopeError
from rankscope.features.counted_rows import with_rows_of_samples
from rankscope.features.cut_names import Chosen
from rankscope.features.hooks import resolve_layer
from rankscope.slicing import CutPointsLike, Sample

__all__ = ["ChosenLayers", "PathLayers"]


_FIRST = re.compile(r"#1([.:].*)?")  # after a module's name: its first call, or a part of what that returns

Entry: TypeAlias = tuple[str, str, int]
"""A layer's name, its module, and how many calls of that a sample needs to give it: 0 where the first sample did."""


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that some samples showed, in order of depth.

    ``seen`` counts by module the most calls in one pass; ``waiting`` is what was asked for under which none of these
    samples calls anything.
    """

    found: tuple[Entry, ...]
    seen: Mapping[str, int] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.found]

    @property
    def in_records(self) -> dict[str, str]:
        """By layer, its name in a record: of what no sample calls twice the first call needs no number."""
        return {
            name: name.replace(f"{module}#1", module, 1)
            if self.seen.get(module) == 1 and _FIRST.fullmatch(name.removeprefix(module))
            else name
            for name, module, _ in self.found
        }

    def joined(self, other: ChosenLayers) -> ChosenLayers:
        """What these samples and those that follow them show, each of which was looked at by itself.

        A layer that one of them called and did not choose went unmeasured there: it is left out.
        """
        both = [one for one in _merged(self.found, other.found) if self._may_hold(one) and other._may_hold(one)]
        return ChosenLayers(tuple(both), Counter(self.seen) | Counter(other.seen), self.waiting & other.waiting)

    def _may_hold(self, entry: Entry) -> bool:
        return entry in self.found or self.seen.get(entry[1], 0) < entry[2]

    def to_dict(self) -> dict[str, Any]:
        return {"found": list(self.found), "seen": dict(self.seen), "waiting": sorted(self.waiting)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ChosenLayers:
        found = tuple((str(name), str(module), int(need)) for name, module, need in plain["found"])
        return cls(found, Counter(plain["seen"]), frozenset(plain["waiting"]))


class PathLayers:
    """Watches which modules a pass calls, and chooses again where one is called that was not, or more often.

    ``choose`` gives what one sample shows, of a model whose other samples call each module so many times; of layers
    that were named one by one nothing further can be chosen. With ``numbered`` the calls of a module that the first
    sample does not call have numbers, also the only one: a name that does not depend on which samples came before, so
    that ``ChosenLayers`` of several processes can be joined. Use it inside ``inference``, as a context manager;
    ``begin`` comes before each pass and ``take_in`` after it.
    """

    def __init__(
        self,
        model: nn.Module,
        first: Sample,
        wanted: CutPointsLike | None,
        choose: Callable[[Sample, Mapping[str, int] | None], Chosen],
        *,
        numbered: bool = False,
    ) -> None:
        self.model, self.wanted, self.choose, self.numbered = model, wanted, choose, numbered
        found = choose(first, None)
        names, self.facts = with_rows_of_samples(model, first, found.names, wanted)
        self.written_out = found.called is None  # named one by one: no sample adds any
        entries = tuple((name, module, 0) for name, module, _ in self._entries(names))
        self.first = self.layers = ChosenLayers(entries, found.called or {}, frozenset(found.waiting))
        self._called: Counter[str] = Counter()
        self._stack = ExitStack()

    @classmethod
    def named(cls, model: nn.Module, names: Sequence[str]) -> PathLayers:
        """Layers written out, which need no look at a sample."""
        return cls(model, _NO_SAMPLE, list(names), lambda _sample, _times: Chosen(list(names), None, set()))

    def __enter__(self) -> PathLayers:
        for name, module in self.model.named_modules():
            if not self.written_out and self.first.seen.get(name, 0) != 1:  # what the first calls once keeps its name
                self._stack.callback(module.register_forward_pre_hook(self._sees(name)).remove)
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
        seen = Counter(before.seen) | self._called
        own: tuple[Entry, ...] = ()
        waiting = before.waiting
        try:
            found = self.choose(sample, self._times(seen))
            names, left_out = with_rows_of_samples(self.model, sample, found.names, self.wanted)
        except RankscopeError:  # nothing of this path can be chosen
            pass
        else:
            # calls that earlier samples made went unmeasured
            known = {one[0]: one for one in before.found}
            entries = (known.get(one[0], one) for one in self._entries(names))
            own = tuple(one for one in entries if one in before.found or one[2] > before.seen.get(one[1], 0))
            waiting &= found.waiting
            self.facts = (*self.facts, *(fact for fact in left_out if fact not in self.facts))
        self.layers = ChosenLayers(tuple(_merged(before.found, own)), seen, waiting)
        return [one[0] for one in own if one not in before.found]

    def _times(self, seen: Mapping[str, int]) -> Mapping[str, int]:
        """How often modules are called, as their layers are to be named."""
        if not self.numbered:
            return seen
        return {name: count if self.first.seen.get(name) else max(count, 2) for name, count in seen.items()}

    def go_on(self, layers: ChosenLayers) -> None:
        """From what an earlier run had found."""
        self.layers = layers

    def _entries(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """Each with its module, as ``named_modules`` names it."""
        known = {id(module): name for name, module in self.model.named_modules()}
        places = [(name, resolve_layer(self.model, name)) for name in names]
        return tuple((name, known[id(place.module)], place.call or 1) for name, place in places)

    def _sees(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any) -> None:
            self._called[name] += 1

        return hook


_NO_SAMPLE = Sample(torch.zeros(1), "no sample")


def _merged(names: Sequence[Entry], others: Sequence[Entry]) -> list[Entry]:
    """All names, each of the others behind the one that it follows there."""
    merged = list(names)
    for k, name in enumerate(others):
        if name not in merged:
            earlier = [merged.index(other) for other in others[:k] if other in merged]
            merged.insert(max(earlier, default=-1) + 1, name)
    return merged
