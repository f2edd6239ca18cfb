"""Replay a sweep's kernels on an NVIDIA GPU without the cost of launching them one by one.

A transformer's forward-mode pass launches thousands of small kernels through two layers of transforms; the launches,
not the arithmetic, take most of its time. A CUDA graph records them once and replays them for every further chunk and
image: the same kernels on other numbers, so the results are the plain path's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.jacobian.methods import Method
from rankscope.jacobian.runner import Runner
from rankscope.slicing import Sample

__all__ = ["Graphed"]

_SLACK = 1.06  # further images light up a few more rows than the first
_AGREE = 1e-6


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    sample: Sample
    tangents: Tensor
    rows: list[Tensor | None]
    outputs: tuple[Tensor, ...]


class Graphed:
    """Stands in for a ``Method``: records on the first chunk of each shape, replays afterwards."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.recorded: dict[tuple[object, ...], _Recorded] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.refused = ""
        self.difference = 0.0

    @staticmethod
    def suits(sample: Sample) -> bool:
        """Whether everything but the differentiated tensor stays the same from image to image."""
        return sample.x.device.type == "cuda" and not any(isinstance(v, Tensor) for v in sample.extra.values())

    def __call__(self, runner: Runner, sample: Sample, tangents: Tensor) -> tuple[Tensor, ...]:
        if self.refused or not self.suits(sample):
            return self.method(runner, sample, tangents)
        key = (id(runner), len(tangents), tuple(sample.x.shape), tuple(r is None or len(r) == 0 for r in runner.rows))
        found = self.recorded.get(key)
        lengths = [None if r is None else len(r) for r in runner.rows]
        if found is not None and self._fits(found, lengths):
            return self._replay(found, runner, sample, tangents, lengths)
        plain = self.method(runner, sample, tangents)
        try:
            recorded = self._record(runner, sample, tangents)
            again = self._replay(recorded, runner, sample, tangents, lengths)
        except RuntimeError as error:
            torch.cuda.synchronize()
            self.refused = (str(error).strip().splitlines() or ["capture failed"])[0]
            return plain
        self.difference = max([self.difference, *(_relative(a, b) for a, b in zip(again, plain, strict=True))])
        if self.difference > _AGREE:
            self.refused = f"the replay differs from the plain path by {self.difference:.1e} of the largest entry"
            return plain
        self.recorded[key] = recorded
        return plain

    @staticmethod
    def _fits(found: _Recorded, lengths: list[int | None]) -> bool:
        return all(
            (n is None) == (r is None) and (n is None or r is None or n <= len(r))
            for n, r in zip(lengths, found.rows, strict=True)
        )

    def _record(self, runner: Runner, sample: Sample, tangents: Tensor) -> _Recorded:
        static = Sample(sample.x.clone(), sample.name, sample.keyword, sample.extra)
        vectors = tangents.clone()
        actual = runner.rows
        rows: list[Tensor | None] = []
        for r in actual:
            if r is None or len(r) == 0:
                rows.append(r)
            else:
                padded = r.new_zeros(int(len(r) * _SLACK) + 64)
                padded[: len(r)] = r
                rows.append(padded)
        runner.rows = rows
        try:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                outputs = self.method(runner, static, vectors)
        finally:
            runner.rows = actual
        return _Recorded(graph, static, vectors, rows, outputs)

    @staticmethod
    def _replay(
        found: _Recorded, runner: Runner, sample: Sample, tangents: Tensor, lengths: list[int | None]
    ) -> tuple[Tensor, ...]:
        found.sample.x.copy_(sample.x)
        found.tangents.copy_(tangents)
        for static, actual in zip(found.rows, runner.rows, strict=True):
            if static is not None and actual is not None and len(actual):
                static[: len(actual)] = actual
        found.graph.replay()
        return tuple(o if n is None else o[:, :n] for o, n in zip(found.outputs, lengths, strict=True))


def _relative(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    top = float(b.abs().max())
    return float((a - b).abs().max()) / top if top > 0 else 0.0
