"""One forward-mode sweep: the columns of every cut point's Jacobian, kept as float64 Gram matrices.

Rows that are exactly zero add nothing to a Gram matrix and are dropped before they are stored: for a 16×16 patch that
is over 98 % of the rows of an early convolution. Which they are is told by random combinations of the columns, which
are zero on a zero row and almost surely nowhere else.
"""

from __future__ import annotations

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


class Sweep:
    """Pushes K columns through the Jacobian at one batch of images of one shape."""

    def __init__(
        self,
        jacobian: LinearMap,
        *,
        chunk: int,
        budget: int,
        combinations: Combinations,
    ) -> None:
        self.jacobian, self.columns = jacobian, combinations.columns
        self.shape = combinations.shape
        self.count = combinations.count
        self.chunk = self.count if jacobian.method.whole else chunk
        self.budget = budget
        self.combinations = combinations

    def tangents(self, start: int, stop: int) -> Tensor:
        return self.columns.tangents(self.shape, start, stop, self.jacobian.device, self.jacobian.dtype)

    def support(self) -> tuple[list[Tensor], list[int]]:
        """Flat indices (over all images of the batch) of the rows that are not exactly zero, and all row counts."""
        pushed = self.jacobian.push(self.combinations.look)
        masks = [(p != 0).any(0) for p in pushed]  # NaN != 0: rows that are not finite stay
        counts = torch.stack([m.count_nonzero() for m in masks]).tolist()
        sizes = [len(m) for m in masks]
        every = torch.cat(masks).nonzero().flatten().split(counts)  # a GPU is waited for twice, however many they are
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
                if probes is not None:
                    result.products[k][:, start:stop] = _times(probes, matrix)
                for image, (first, last) in enumerate(places[k]):
                    lo, hi = max(first, start), min(last, stop)
                    if lo >= hi:
                        continue
                    whole = last - first < self.count and (lo, hi) == (first, last)
                    part = _gram(matrix[:, lo - start : hi - start], transposed=whole)
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
        """(K, rows) matrices of the chosen rows of the chosen cut points; other cut points are cut to nothing."""
        empty = torch.zeros(0, dtype=torch.long, device=self.jacobian.device)
        every = [empty] * len(self.jacobian.runner.keys)
        for k, chosen in zip(cuts, rows, strict=True):
            every[k] = chosen
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


def _times(probes: Tensor, matrix: Tensor) -> Tensor:
    """probes (q, K) times matrix (K, rows) in float64, in blocks of rows."""
    step = _CPU_BLOCK if matrix.device.type == "cpu" else _GPU_BLOCK
    parts = [probes @ matrix[:, i : i + step].to(torch.float64) for i in range(0, matrix.shape[1], step)]
    return torch.cat(parts, 1) if parts else probes.new_zeros(len(probes), 0)


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


def _gram(matrix: Tensor, *, transposed: bool) -> _Gram:
    """J·Jᵀ over the columns (K × K) in float64, or over the rows where those are fewer.

    float64 numbers are divided by a power of two near the largest first, as their squares may be no numbers; those of
    float32 always are.
    """
    exponent = int(exponent_near(matrix)) if matrix.dtype == torch.float64 else 0

    def scaled(part: Tensor) -> Tensor:
        return times_two_to(part, -exponent) if exponent else part.to(torch.float64)

    if transposed:
        rows = scaled(matrix)
        return _Gram(rows.T @ rows, exponent)
    count, width = matrix.shape
    if matrix.device.type == "cpu":
        total = np.zeros((count, count))
        for start in range(0, width, _CPU_BLOCK):
            part = scaled(matrix[:, start : start + _CPU_BLOCK]).numpy()
            total += part @ part.T  # numpy sees the symmetry: half the work
        return _Gram(torch.from_numpy(total), exponent)
    gram = torch.zeros(count, count, dtype=torch.float64, device=matrix.device)
    for start in range(0, width, _GPU_BLOCK):
        _add_lower(gram, scaled(matrix[:, start : start + _GPU_BLOCK]))
    return _Gram(gram.tril() + gram.tril(-1).T, exponent)


def _add_lower(gram: Tensor, block: Tensor) -> None:
    """Add block·blockᵀ where it is on or below the diagonal; what is computed beyond is of no use."""
    strip = -(-len(block) // _STRIPS)
    for first in range(0, len(block), strip):
        last = first + strip
        gram[first:last, :last].addmm_(block[first:last], block[:last].T)
