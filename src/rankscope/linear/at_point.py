"""A traced network linearised at one point, and then at the next; on a GPU both steps are recorded as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankscope.linear.graphs import record
from rankscope.linear.steps import linearise, push
from rankscope.linear.traced import TracedNetwork

__all__ = ["AtPoint"]


class AtPoint:
    """A traced network linearised at one image, and then at the next."""

    def __init__(self, network: TracedNetwork, x: Tensor, *, replay: bool) -> None:
        self.network = network
        self.replay = replay
        self.steps, self.outputs = linearise(network, x)
        self._x = x
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pushes: dict[Any, _RecordedPush] = {}
        if replay:
            self.pool = torch.cuda.graph_pool_handle()
            self._x = x.clone()
            try:
                self._graph, (self.steps, self.outputs) = record(lambda: linearise(network, self._x), self.pool)
                self._graph.replay()
            except RuntimeError:
                torch.cuda.synchronize()
                self.replay = False
                self.steps, self.outputs = linearise(network, x)

    def move(self, x: Tensor) -> None:
        if self._graph is not None and self.replay:
            self._x.copy_(x)
            self._graph.replay()
        else:
            self.steps, self.outputs = linearise(self.network, x)

    def push(self, tangents: Tensor, rows: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        if not self.replay:
            return self._push(tangents, rows)
        lengths = [None if r is None else len(r) for r in rows]
        key = (len(tangents), tuple(None if n is None else n > 0 for n in lengths))
        found = self._pushes.get(key)
        if found is None or not found.fits(lengths):
            self._pushes.pop(key, None)
            static, padded = tangents.clone(), [_padded(r) for r in rows]
            try:
                graph, out = record(lambda: self._push(static, padded), self.pool)
            except RuntimeError:
                torch.cuda.synchronize()
                self.replay = False
                return self._push(tangents, rows)
            found = self._pushes[key] = _RecordedPush(graph, static, padded, out)
        return found(tangents, rows, lengths)

    def _push(self, tangents: Tensor, rows: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        def take(i: int, tangent: Tensor) -> Tensor:
            chosen = rows[i]
            flat = tangent.reshape(len(tangent), -1)
            return flat.clone() if chosen is None else flat.index_select(1, chosen)

        images = self._x.shape[0]
        full = tangents[:, None].expand(-1, images, *tangents.shape[1:])
        return tuple(push(self.network, self.steps, full, take))


_SLACK = 1.06  # further images light up a few more rows than the first


def _padded(rows: Tensor | None) -> Tensor | None:
    if rows is None or len(rows) == 0:
        return rows
    out = rows.new_zeros(int(len(rows) * _SLACK) + 64)
    out[: len(rows)] = rows
    return out


@dataclass
class _RecordedPush:
    graph: torch.cuda.CUDAGraph
    tangents: Tensor
    rows: list[Tensor | None]
    outputs: tuple[Tensor, ...]

    def fits(self, lengths: Sequence[int | None]) -> bool:
        return all(n is None or r is None or n <= len(r) for n, r in zip(lengths, self.rows, strict=True))

    def __call__(
        self, tangents: Tensor, rows: Sequence[Tensor | None], lengths: Sequence[int | None]
    ) -> tuple[Tensor, ...]:
        self.tangents.copy_(tangents)
        for static, actual in zip(self.rows, rows, strict=True):
            if static is not None and actual is not None and len(actual):
                static[: len(actual)] = actual
        self.graph.replay()
        return tuple(o if n is None else o[:, :n] for o, n in zip(self.outputs, lengths, strict=True))
