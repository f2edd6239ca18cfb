"""A traced network's derivative at one point as a list of steps, one tangent rule an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from rankscope.linear.regions import Region
from rankscope.linear.rule import Call, Derived, Push, Regions, Tangent, whole_of
from rankscope.linear.rules import derive, ties
from rankscope.linear.traced import TracedNetwork

__all__ = ["Linearisation", "Step", "leading_to", "linearise", "push"]


@dataclass
class Step:
    """One operator's tangent rule: which tangents it takes, what may be freed after it."""

    name: str
    push: Push
    takes: tuple[str, ...]
    last: tuple[str, ...]


@dataclass
class Linearisation:
    """The steps, the outputs of the cut points, and the region on which each output's tangent comes.

    ``largest`` are the entries of one tangent that the largest step takes and gives; ``widest`` the same of the largest
    convolution. ``ties`` says whether some operator lies exactly at a kink where torch's two modes differ; ``None``
    where no operator has one.
    """

    steps: list[Step]
    outputs: tuple[Tensor, ...]
    regions: tuple[Region, ...]
    largest: int = 0
    widest: int = 0
    ties: Tensor | None = None
    held: Any = None
    """All regions, as a recording of this reads the index tensors that belong to them."""


def linearise(network: TracedNetwork, x: Tensor, region: Region | None = None) -> Linearisation:
    """Run the network at ``x`` and keep, for each operator on the way, the coefficients of its derivative.

    ``region`` says where the input's tangents may differ from zero; everywhere, if not given.
    """
    values: dict[str, Any] = dict(network.constants)
    regions: dict[str, Regions] = {network.input.name: region or Region.whole(x.shape)}
    steps: list[Step] = []
    largest = widest = 0
    at_ties: list[Tensor] = []
    held: list[Regions] = []
    found: dict[str, Tensor] = {n: values[n].reshape(-1) for n in network.outputs if n in values}
    for node in network.nodes:
        if node.op == "placeholder":
            values[node.name] = x
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
            out = node.target(*args, **kwargs)
            values[node.name] = out
            if node.name in network.depends:
                takes = tuple(dict.fromkeys(n.name for n in node.all_input_nodes if n.name in network.depends))
                call = Call(node, args, kwargs, out, network.depends, tuple(regions[n] for n in takes))
                tied = ties(call)
                if tied is not None:
                    at_ties.append(tied)
                derived = network.folded.get(node.name, derive)(call)
                regions[node.name] = whole_of(out) if derived.gives is None else derived.gives
                entries = _entries(derived.takes or call.regions) + _entries(regions[node.name])
                largest = max(largest, entries)
                if node.target is torch.ops.aten.convolution.default:
                    widest = max(widest, entries)
                held.append(derived.takes)
                freed = tuple(n for n in network.last_use.get(node.name, ()) if n not in network.outputs)
                steps.append(Step(node.name, _moved_first(derived, call.regions), takes, freed))
        if node.name in network.outputs:
            found[node.name] = values[node.name].reshape(-1)
        for name in network.last_use.get(node.name, ()):
            if name not in network.constants:
                values.pop(name, None)
    return Linearisation(
        steps,
        tuple(found[n] for n in network.outputs),
        tuple(regions.get(n) or Region.whole(found[n].shape) for n in network.outputs),
        largest,
        widest,
        torch.stack(at_ties).any() if at_ties else None,
        (regions, held),
    )


def _entries(regions: Regions) -> int:
    if isinstance(regions, list | tuple):
        return sum(_entries(r) for r in regions)
    return 0 if regions is None else int(regions.count)


def _moved_first(derived: Derived, regions: Sequence[Regions]) -> Push:
    """The rule's push of tangents that are first brought to the regions on which it takes them."""
    moves = [
        (i, have, want)
        for i, (have, want) in enumerate(zip(regions, derived.takes or regions, strict=True))
        if isinstance(have, Region) and have.axes != want.axes
    ]
    if not moves:
        return derived.push

    def push_moved(t: Sequence[Tangent], reuse: Sequence[bool]) -> Tangent:
        taken, free = list(t), list(reuse)
        for i, have, want in moves:
            if taken[i] is not None:
                moved = have.moved(taken[i], want)
                free[i] |= moved.untyped_storage().data_ptr() != taken[i].untyped_storage().data_ptr()
                taken[i] = moved
        return derived.push(taken, free)

    return push_moved


def leading_to(steps: Sequence[Step], output: str) -> tuple[Step, ...]:
    """The steps without which a value has no tangent; each says what may be freed where those alone are taken."""
    needed, seen = {output}, {output}  # what is kept to the end, or used by a later step
    chosen: list[Step] = []
    for step in reversed(steps):
        if step.name in needed:
            needed.update(step.takes)
            chosen.append(replace(step, last=tuple(n for n in step.takes if n not in seen)))
            seen.update(step.takes)
    return tuple(reversed(chosen))


def push(
    network: TracedNetwork,
    steps: Sequence[Step],
    tangents: Tensor,
    take: Callable[[int, Tensor], Tensor],
    places: Sequence[int] | None = None,
) -> list[Tensor]:
    """Tangents (chunk, B, …), carried on the input's region, to ``take(i, tangent)`` of every output i.

    ``places`` are the outputs that are asked for; ``None``: all of them.
    """
    values: dict[str, Any] = {network.input.name: tangents}
    found: dict[int, Tensor] = {}
    wanted: dict[str, list[int]] = {}
    places = range(len(network.outputs)) if places is None else places
    for i in places:
        wanted.setdefault(network.outputs[i], []).append(i)
    holders = _Holders()
    holders.add(tangents)
    holders.add(tangents)  # the caller's own reference: never written to
    for step in steps:
        taken = [values.get(n) for n in step.takes]
        reusable = {n for n, t in zip(step.takes, taken, strict=True) if n in step.last and holders.alone(t)}
        out = step.push(taken, [n in reusable for n in step.takes])
        for i in wanted.get(step.name, ()):
            if out is not None:
                found[i] = take(i, out)
        for n in step.last:
            holders.remove(values.pop(n, None))
        if out is not None:
            values[step.name] = out
            holders.add(out)
    chunk = len(tangents)
    return [found[i] if i in found else tangents.new_zeros(chunk, 0) for i in places]


class _Holders:
    """How many live values share each storage: only a value that is alone may be overwritten."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    @staticmethod
    def _places(value: Any) -> list[int]:
        members = value if isinstance(value, list | tuple) else [value]
        return [t.untyped_storage().data_ptr() for t in members if isinstance(t, Tensor)]

    def add(self, value: Any) -> None:
        for place in self._places(value):
            self.counts[place] = self.counts.get(place, 0) + 1

    def remove(self, value: Any) -> None:
        for place in self._places(value):
            self.counts[place] -= 1
            if self.counts[place] == 0:
                del self.counts[place]

    def alone(self, value: Any) -> bool:
        if not isinstance(value, Tensor):
            return False
        return self.counts.get(value.untyped_storage().data_ptr(), 0) == 1 and not _overlaps_itself(value)


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
