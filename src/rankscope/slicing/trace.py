"""One forward pass that lists every module call and says which of them are true cuts.

A cut point is a true cut when all information from the input to the network's output passes through it: setting its
tangent to zero makes the output's tangent zero. In the graph that autograd records these are the nodes on every path
from input to output, found in one sweep in topological order: a node lies on every path exactly when no edge jumps
over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import ModelError
from rankscope.slicing.capture import CallKey, capture, first_tensor
from rankscope.slicing.guard import measuring
from rankscope.slicing.inputs import Sample, call_model
from rankscope.slicing.mixing import MixingGraph, Stretch, mixing_before

__all__ = ["ModuleCall", "Trace", "trace"]


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module.

    ``name`` is the dotted module name, with ``#k`` (k from 1) where the module is called several times.
    ``node`` identifies the tensor it returned: two calls with one ``node`` returned the very same tensor.
    ``mixing`` has one bit for every operation before its output that mixes features (matrix product, convolution, …);
    ``always`` those of them that all ways from the input to this output pass through.
    """

    name: str
    key: CallKey
    kind: str
    shape: tuple[int, ...]
    true_cut: bool
    depends: bool
    leaf: bool
    node: int
    mixing: int = 0
    always: int = 0


@dataclass(frozen=True)
class Trace:
    """All module calls of one forward pass, in the order in which the modules returned."""

    calls: tuple[ModuleCall, ...]
    model: str
    input_shape: tuple[int, ...]
    structured: bool
    """Whether autograd's graph was there to tell true cuts; without it ``true_cut`` is False everywhere."""

    sizes: tuple[tuple[int, int], ...] = ()
    """By bit of ``ModuleCall.mixing``: how many values enter and leave the operation."""

    def mixes(self, calls: Sequence[ModuleCall]) -> list[Stretch]:
        """For each of some calls in depth order: what mixes features between the last true cut of them and it.

        Where no true cut is known the last call counts instead.
        """
        found, before = [], 0
        for call in calls:
            found.append(self._stretch(call.mixing & ~before, call.always))
            if call.true_cut or not self.structured:
                before = call.mixing
        return found

    def _stretch(self, between: int, always: int) -> Stretch:
        chain = self.structured and between & ~always == 0
        sizes = tuple(size for k, size in enumerate(self.sizes) if chain and between >> k & 1)
        return Stretch(between.bit_count(), sizes)

    def named(self, module: str) -> list[ModuleCall]:
        """Every call of one module, or the one call named ``module#k``."""
        return [c for c in self.calls if c.name == module or c.key[0] == module]


def _between(output: Any, leaf: Tensor) -> list[Any]:
    """The graph's nodes on any path from the input leaf to the output, input first, in topological order."""
    forward: dict[Any, list[Any]] = {}
    order: list[Any] = []
    stack: list[tuple[Any, bool]] = [(output, False)]
    seen: set[Any] = set()
    while stack:  # depth-first post-order: every node after all the nodes it depends on
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        forward[node] = [n for n, _ in node.next_functions if n is not None]
        stack.extend((n, False) for n in forward[node] if n not in seen)
    reaches: set[Any] = set()
    for node in order:
        if getattr(node, "variable", None) is leaf or any(n in reaches for n in forward[node]):
            reaches.add(node)
    return [n for n in order if n in reaches]


def _on_every_path(nodes: list[Any]) -> set[Any]:
    index = {n: i for i, n in enumerate(nodes)}
    furthest = [0] * len(nodes)  # the last node that uses this node's value directly
    for i, node in enumerate(nodes):
        for before, _ in node.next_functions:
            if before in index:
                furthest[index[before]] = max(furthest[index[before]], i)
    every, reach = set(), 0
    for i, node in enumerate(nodes):
        if reach <= i:
            every.add(node)
        reach = max(reach, furthest[i])
    return every


def _used_outputs(nodes: list[Any]) -> dict[Any, set[int]]:
    """For every node, which of its outputs the others use."""
    used: dict[Any, set[int]] = {}
    for node in nodes:
        for before, place in node.next_functions:
            if before is not None:
                used.setdefault(before, set()).add(place)
    return used


def trace(model: nn.Module, sample: Sample) -> Trace:
    """Run the model once on one sample and describe every module call.

    Raises
    ------
    ModelError
        When the forward pass fails; the message holds the model's own words.
    """
    nodes: dict[CallKey, Any] = {}
    places: dict[CallKey, int] = {}  # which of its node's outputs a tensor is: split has one node for all its parts
    seen: dict[CallKey, tuple[nn.Module, tuple[int, ...]]] = {}

    def take(key: CallKey, module: nn.Module, tensor: Tensor) -> bool:
        seen[key] = (module, tuple(tensor.shape))
        nodes[key], places[key] = tensor.grad_fn, tensor.output_nr
        return True

    with measuring(model, sample.x.device):
        structured = True
        leaf = sample.x.detach().clone()
        with torch.inference_mode(False), torch.enable_grad():
            leaf = leaf.clone().requires_grad_()
            with capture(model, None, take):
                try:
                    # × 1: an in-place operation on a leaf would be refused
                    output = first_tensor(call_model(model, sample, leaf * 1))
                except Exception as error:
                    raise ModelError(
                        f"{type(model).__name__} failed on an input of shape {tuple(leaf.shape)}: {_first_line(error)}"
                    ) from error
        if output is None:
            raise ModelError(f"{type(model).__name__} returned no floating-point tensor; there is nothing to measure")
        used: dict[Any, set[int]] = {}
        if output.grad_fn is None:
            structured, every = False, set()
            graph = MixingGraph()
        else:
            path = _between(output.grad_fn, leaf)
            structured = bool(path)
            every = _on_every_path(path)
            used = _used_outputs(path)
            used.setdefault(output.grad_fn, set()).add(output.output_nr)
            graph = mixing_before(nodes.values(), leaf)

    counts: dict[str, int] = {}
    for name, _ in seen:
        counts[name] = counts.get(name, 0) + 1
    numbers: dict[Any, int] = {}
    calls: list[ModuleCall] = []
    for key, (module, shape) in seen.items():
        node = nodes[key]
        name = key[0] if counts[key[0]] == 1 else f"{key[0]}#{key[1] + 1}"
        calls.append(
            ModuleCall(
                name=name,
                key=key,
                kind=type(module).__name__,
                shape=shape,
                true_cut=node in every and used[node] == {places[key]},
                depends=not structured or node in graph.some,
                leaf=next(module.children(), None) is None,
                node=numbers.setdefault((node, places[key]), len(numbers)) if node is not None else -1 - len(calls),
                mixing=graph.some.get(node, 0) if structured else _weights_up_to(calls, module),
                always=graph.every.get(node, 0),
            )
        )
    return Trace(tuple(calls), type(model).__name__, tuple(sample.x.shape[1:]), structured, tuple(graph.sizes))


def _weights_up_to(before: list[ModuleCall], module: nn.Module) -> int:
    """Where no graph tells: one bit for every call so far of a module that holds a weight matrix of its own."""
    own = any(p.ndim >= 2 for p in module.parameters(recurse=False))
    earlier = before[-1].mixing if before else 0
    return earlier | (1 << len(before) if own else 0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
