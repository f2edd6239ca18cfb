"""A traced network linearised at one point, and then at the next; on a GPU both steps are recorded as CUDA graphs.

The first point is not recorded: a recording takes as long as several passes, and there may be no second point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankscope.linear.graphs import record
from rankscope.linear.regions import Region
from rankscope.linear.steps import Linearisation, linearise, push
from rankscope.linear.traced import TracedNetwork

__all__ = ["AtPoint"]


class AtPoint:
    """A traced network linearised at one image, and then at the next.

    ``region`` is that of one image's tangents: what is pushed is zero outside of it, and so are rows that it does not
    reach.
    """

    def __init__(self, network: TracedNetwork, x: Tensor, *, replay: bool, region: Region | None = None) -> None:
        self.network = network
        self.replay = replay
        self.region = region
        self.moved = 0
        self.at = x
        self._images = len(x)
        self._everywhere = (
            None if region is None else Region(tuple(x.shape), (range(len(x)), *region.axes))
        )  # of the batch
        self._made = linearise(network, x, self._everywhere)
        self._x = x
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pushes: dict[Any, _RecordedPush] = {}
        self._places: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Flat outputs of every cut point."""
        return self._made.outputs

    @property
    def made(self) -> Linearisation:
        return self._made

    def move(self, x: Tensor) -> None:
        self.at = x
        self.moved += 1
        self._places.clear()
        if not self.replay:
            self._made = linearise(self.network, x, self._everywhere)
        elif self._graph is None:
            self._record(x)
        else:
            self._x.copy_(x)
            self._graph.replay()

    def _record(self, x: Tensor) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self._x = x.clone()
        try:
            self._graph, self._made = record(lambda: linearise(self.network, self._x, self._everywhere), self.pool)
            self._graph.replay()
        except RuntimeError:
            torch.cuda.synchronize()
            self.replay = False
            self._made = linearise(self.network, x, self._everywhere)

    def push(self, tangents: Tensor, rows: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Tangents (chunk, *shape) of one image each, to the chosen rows of every cut point."""
        if self.region is not None:
            tangents = Region.whole(self.region.shape).moved(tangents, self.region)
        places = self._carried(rows)
        out = self._push_at(tangents, [p for p, _ in places])
        return tuple(_with_zeros(o, unreached) for o, (_, unreached) in zip(out, places, strict=True))

    def _carried(self, rows: Sequence[Tensor | None]) -> list[tuple[Tensor | None, Tensor | None]]:
        """Where the rows of every output are in its tangent as it is carried; and those that nothing reaches."""
        new: list[tuple[tuple[int, int], Tensor, Tensor, Tensor]] = []
        for i, some in enumerate(rows):
            if some is None or not self._moves_rows(i, some) or (i, id(some)) in self._places:
                continue
            have = self._made.regions[i].index.on(some.device)
            if some is have:  # every row that can be reached
                self._places[i, id(some)] = some, torch.arange(len(have), device=have.device), None
                continue
            at = torch.searchsorted(have, some).clamp(max=len(have) - 1)
            new.append(((i, id(some)), some, at, have[at] != some))
        if new:  # a GPU is waited for once, however many outputs there are
            missed = torch.stack([unreached.any() for *_, unreached in new]).tolist()
            for (key, some, at, unreached), any_missed in zip(new, missed, strict=True):
                # the rows are held too, so that their id stays theirs
                self._places[key] = some, at, unreached if any_missed else None
        return [
            (some, None) if some is None or not self._moves_rows(i, some) else self._places[i, id(some)][1:]
            for i, some in enumerate(rows)
        ]

    def _moves_rows(self, i: int, rows: Tensor) -> bool:
        return not self._made.regions[i].is_whole and len(rows) > 0

    def _push_at(self, tangents: Tensor, rows: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        if not self.replay or self._graph is None:
            return self._push(tangents, rows)
        lengths = [None if r is None else len(r) for r in rows]
        key = (len(tangents), tuple(None if n is None else n > 0 for n in lengths))
        found = self._pushes.get(key)
        if found is None or not found.fits(lengths):
            self._pushes.pop(key, None)
            static, padded = tangents.clone(), [_padded(r) for r in rows]
            if self.region is not None:
                self._push(static[:1], padded)  # makes the index tensors, which a recording cannot
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
            chosen, region = rows[i], self._made.regions[i]
            flat = tangent.reshape(len(tangent), -1)
            if chosen is not None:
                return flat.index_select(1, chosen)
            if region.is_whole:
                return flat.clone()
            out = flat.new_zeros(len(flat), self._made.outputs[i].numel())
            return out.index_copy_(1, region.index.on(flat.device), flat)

        full = tangents[:, None].expand(-1, self._images, *tangents.shape[1:])
        return tuple(push(self.network, self._made.steps, full, take))


def _with_zeros(tangents: Tensor, unreached: Tensor | None) -> Tensor:
    return tangents if unreached is None else tangents.masked_fill(unreached, 0.0)


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
