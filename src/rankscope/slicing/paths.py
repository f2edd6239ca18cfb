"""Autograd's graph between a network's input and its outputs, and the places that all information passes through.

Setting the tangent at a place to zero makes every output's tangent zero exactly when the place lies on all paths from
the input to the outputs. For one tensor that takes one sweep in topological order: a node lies on every path exactly
when no edge jumps over it, where the outputs count as edges to one common end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["Paths", "Place"]

Place = tuple[Any, int]
"""A node of the graph and which of its outputs is meant: ``split`` has one node for all its parts."""


class Paths:
    """All paths from one leaf to some outputs. False where there is none."""

    def __init__(self, outputs: Iterable[Place], leaf: Tensor) -> None:
        self.leaf = leaf
        self.nodes = _between([node for node, _ in outputs], leaf)
        inside = set(self.nodes)
        self.ends = {(node, place) for node, place in outputs if node in inside}
        self.used: dict[Any, set[int]] = {}
        for node, place in self.ends:
            self.used.setdefault(node, set()).add(place)
        for node in self.nodes:
            for before, place in node.next_functions:
                if before in inside:
                    self.used.setdefault(before, set()).add(place)
        self._every = self._on_every_path()

    def __bool__(self) -> bool:
        return bool(self.nodes)

    def passes_on(self, place: Place) -> bool:
        """Whether some output depends on this tensor."""
        return place[1] in self.used.get(place[0], ())

    def is_cut(self, places: Iterable[Place]) -> bool:
        """Whether all information passes through these tensors, taken together."""
        chosen = {p for p in places if self.passes_on(p)}
        if len(chosen) == 1:
            ((node, place),) = chosen
            return node in self._every and self.used[node] == {place}
        return bool(chosen) and not self._avoid(chosen)

    def _avoid(self, places: set[Place]) -> bool:
        """Whether some path goes around all of these tensors."""
        stack = [node for node, place in self.ends - places]
        seen: set[Any] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if getattr(node, "variable", None) is self.leaf:
                return True
            stack.extend(n for n, place in node.next_functions if n in self.used and (n, place) not in places)
        return False

    def _on_every_path(self) -> set[Any]:
        index = {n: i for i, n in enumerate(self.nodes)}
        end = len(self.nodes)
        furthest = [0] * end  # the last node that uses this node's value directly
        for node, _ in self.ends:
            furthest[index[node]] = end
        for i, node in enumerate(self.nodes):
            for before, _ in node.next_functions:
                if before in index:
                    furthest[index[before]] = max(furthest[index[before]], i)
        every, reach = set(), 0
        for i, node in enumerate(self.nodes):
            if reach <= i:
                every.add(node)
            reach = max(reach, furthest[i])
        return every


def _between(outputs: Iterable[Any], leaf: Tensor) -> list[Any]:
    """The graph's nodes on any path from the input leaf to the outputs, input first, in topological order."""
    forward: dict[Any, list[Any]] = {}
    order: list[Any] = []
    stack: list[tuple[Any, bool]] = [(output, False) for output in outputs]
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
