"""One forward-mode sweep: the columns of every cut point's Jacobian, kept as float64 Gram matrices.

Rows that are exactly zero add nothing to a Gram matrix and are dropped before they are stored: for a 16×16 patch that
is over 98% of the rows of an early convolution. Which they are is told by random combinations of the columns, which
are zero on a zero row and almost surely nowhere else.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from rankscope.jacobian.combinations import Combinations
from rankscope.linear.linear_map import LinearMap
from rankscope.spectra import exponent_near, times_two_to

__all__ = ["Sweep", "SweepResult"]

_CPU_BLOCK = 8192  # rows; × 768 columns in float64 = 50 MB a block
_GPU_BLOCK = 131_072
_DENSE = 0.98  # of the rows that can be reached
_STRIPS = 4  # of a Gram matrix: 768 columns take 0.78 of the time of the whole product on an H100


@dataclass
class SweepResult:
    """What one sweep leaves, for each cut point (outer) and image (inner)."""

    grams: list[list[Tensor]]
    transposed: list[list[bool]]
    kept: list[list[int]]
    rows: list[int]
    exponents: list[list[int]]
    """Each Gram matrix is that of its columns divided by 2^exponent."""
    products: list[Tensor]
    """J·g on the kept rows for the certificate's probes g, float64, (probes, rows); and where those rows are."""
    support: list[Tensor]
    eigenvalues: Future[list[Tensor | None]] | None = None
    """Those of all Gram matrices, image by image within each cut point, where somebody has begun on them."""


class Sweep:
    """Pushes K columns through the Jacobian at one batch of images of one shape."""

    def __init__(
        self,
        jacobian: LinearMap,
        *,
        chunk: int,
        budget: int,
        combinations: Combinations,
        dense: bool = False,
    ) -> None:
        self.jacobian, self.columns = jacobian, combinations.columns
        self.shape = combinations.shape
        self.count = combinations.count
        self.chunk = self.count if jacobian.method.whole else chunk
        self.budget = budget
        self.combinations = combinations
        self.dense = dense

    def tangents(self, start: int, stop: int) -> Tensor:
        return self.columns.tangents(self.shape, start, stop, self.jacobian.device, self.jacobian.dtype)

    def support(self) -> tuple[list[Tensor], list[int]]:
        """Flat indices (over all images of the batch) of the rows that are not exactly zero, and all row counts.

        Where ``dense`` says that nearly all rows which can be reached were kept of another sample, all of them are, and
        none is looked at: zeros add nothing to a Gram matrix.
        """
        device, reached = self.jacobian.device, self.jacobian.reached()
        if reached is not None and self.dense:
            return [r.index.on(device) for r in reached], [math.prod(r.shape) for r in reached]
        pushed = self.jacobian.push(self.combinations.look)
        masks = [(p != 0).any(0) for p in pushed]  # NaN != 0: rows that are not finite stay
        counts = torch.stack([m.count_nonzero() for m in masks]).tolist()
        sizes = [len(m) for m in masks]
        every = torch.cat(masks).nonzero().flatten().split(counts)  # a GPU is waited for twice, however many they are
        self.dense = reached is not None and sum(counts) >= _DENSE * sum(r.count for r in reached)
        return [places - start for places, start in zip(every, accumulate([0, *sizes]), strict=False)], sizes

    def run(self, *, certified: bool) -> SweepResult:
        """Sweep all columns. ``certified`` asks for J·g on the kept rows for every probe g."""
        images = len(self.jacobian.sample.x)
        probes = self.combinations.weights if certified else None
        support, sizes = self.support()
        result = SweepResult([], [], [], [s // images for s in sizes], [], [], support)
        places = [self._segments(s, size, images) for s, size in zip(support, sizes, strict=True)]
        result.kept = [[stop - start for start, stop in segments] for segments in places]
        result.grams = [[] for _ in support]
        result.transposed = [[] for _ in support]
        result.products = [
            torch.zeros(0 if probes is None else len(probes), len(s), dtype=torch.float64, device=s.device)
            for s in support
        ]
        pending: list[list[_Gram | None]] = [[None] * images for _ in support]
        for group in self._groups(support):
            chosen = [support[k][start:stop] for k, start, stop in group]
            matrices = self._columns(chosen, [k for k, _, _ in group])
            for (k, start, stop), matrix in zip(group, matrices, strict=True):
                for image, (first, last) in enumerate(places[k]):
                    lo, hi = max(first, start), min(last, stop)
                    if lo >= hi:
                        continue
                    whole = last - first < self.count and (lo, hi) == (first, last)
                    part, products = _reduced(matrix[:, lo - start : hi - start], probes, transposed=whole)
                    if products is not None:
                        result.products[k][:, lo:hi] = products
                    before = pending[k][image]
                    pending[k][image] = part if before is None else before.plus(part)
        for k in range(len(support)):
            result.exponents.append([0] * images)
            for image in range(images):
                found = pending[k][image]
                gram = torch.zeros(0, 0, dtype=torch.float64) if found is None else found.matrix
                result.exponents[k][image] = 0 if found is None else found.exponent
                result.grams[k].append(gram)
                result.transposed[k].append(gram.shape[0] != self.count)
        return result

    @staticmethod
    def _segments(support: Tensor, size: int, images: int) -> list[tuple[int, int]]:
        if images == 1:
            return [(0, len(support))]
        edges = torch.arange(images + 1, device=support.device) * (size // images)
        cuts = torch.searchsorted(support, edges).tolist()
        return list(pairwise(cuts))

    def _groups(self, support: list[Tensor]) -> list[list[tuple[int, int, int]]]:
        """Split all kept rows into groups whose columns fit the budget; a Gram matrix adds up over rows."""
        row = self.count * torch.empty(0, dtype=self.jacobian.dtype).element_size()
        capacity = max(self.budget // row, 1)
        groups: list[list[tuple[int, int, int]]] = [[]]
        room = capacity
        for k, rows in enumerate(support):
            start = 0
            while start < len(rows):
                if room == 0:
                    groups.append([])
                    room = capacity
                stop = min(start + room, len(rows))
                groups[-1].append((k, start, stop))
                room -= stop - start
                start = stop
        return [g for g in groups if g]

    def _columns(self, rows: list[Tensor], cuts: list[int]) -> list[Tensor]:
        """(K, rows) matrices of the chosen rows of the chosen cut points; other cut points are cut to nothing.

        They hold until the next call: a recorded push writes its outputs again.
        """
        empty = torch.zeros(0, dtype=torch.long, device=self.jacobian.device)
        every = [empty] * len(self.jacobian.runner.keys)
        for k, chosen in zip(cuts, rows, strict=True):
            every[k] = chosen
        if self.chunk >= self.count:
            out = self.jacobian.push(self.tangents(0, self.count), every)
            return [out[k] for k in cuts]
        matrices = [
            torch.empty(self.count, len(chosen), dtype=self.jacobian.dtype, device=self.jacobian.device)
            for chosen in rows
        ]
        for start in range(0, self.count, self.chunk):
            stop = min(start + self.chunk, self.count)
            out = self.jacobian.push(self.tangents(start, stop), every)
            for k, matrix in zip(cuts, matrices, strict=True):
                matrix[start:stop] = out[k]
        return matrices


@dataclass
class _Gram:
    """The Gram matrix of some columns divided by 2^exponent."""

    matrix: Tensor
    exponent: int

    def plus(self, other: _Gram) -> _Gram:
        exponent = max(self.exponent, other.exponent)
        parts = [times_two_to(g.matrix, 2 * (g.exponent - exponent)) if g.exponent != exponent else g.matrix
                 for g in (self, other)]  # fmt: skip
        return _Gram(parts[0] + parts[1], exponent)


def _reduced(matrix: Tensor, probes: Tensor | None, *, transposed: bool) -> tuple[_Gram, Tensor | None]:
    """J·Jᵀ over the columns (K × K) in float64, or over the rows where those are fewer; and probes (q, K) times J.

    float64 numbers are divided by a power of two near the largest before they are squared, as their squares may be no
    numbers; those of float32 always are. So one conversion to float64 serves both products of those.
    """
    exponent = int(exponent_near(matrix)) if matrix.dtype == torch.float64 else 0
    count, width = matrix.shape
    step = width if transposed else _CPU_BLOCK if matrix.device.type == "cpu" else _GPU_BLOCK
    lower = _Lower(0 if transposed else count, matrix.device)
    gram, products = None, []
    for start in range(0, width, step):
        part = matrix[:, start : start + step].to(torch.float64)
        if probes is not None:
            products.append(probes @ part)
        if exponent:
            part = times_two_to(part, -exponent)
        if transposed:
            gram = part.T @ part
        else:
            lower.add(part)
    return _Gram(lower.symmetric() if gram is None else gram, exponent), torch.cat(products, 1) if products else None


class _Lower:
    """A sum of products block·blockᵀ, of which only one half is computed."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._host = np.zeros((count, count)) if device.type == "cpu" else None
        self._total = torch.zeros(0 if device.type == "cpu" else count, count, dtype=torch.float64, device=device)

    def add(self, block: Tensor) -> None:
        if self._host is not None:
            part = block.numpy()
            self._host += part @ part.T  # numpy sees the symmetry: half the work
            return
        strip = -(-len(block) // _STRIPS)
        for first in range(0, len(block), strip):
            last = first + strip
            self._total[first:last, :last].addmm_(block[first:last], block[:last].T)

    def symmetric(self) -> Tensor:
        if self._host is not None:
            return torch.from_numpy(self._host)
        return self._total.tril() + self._total.tril(-1).T
