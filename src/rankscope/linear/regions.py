"""Where a tangent may differ from zero: for each dimension of a value, the positions outside of which it is zero.

A patch of the input reaches, through the first layers of a network, only a small part of each map. Which part follows
from shapes alone: a convolution widens a box by its kernel, a window of attention fills itself. A tangent is carried on
the product of these positions, and everything outside is zero by construction, never by a look at numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Axis",
    "Region",
    "Reshaped",
    "Scattered",
    "axis_of",
    "carried",
    "hull",
    "positions_of",
    "reshaped",
    "take",
]


class Scattered:
    """Ascending positions, not all consecutive; the same object for the same positions as long as one is held.

    A recorded GPU graph reads the index tensor, which lives as long as its positions do.
    """

    __slots__ = ("__weakref__", "_hash", "_on", "positions")

    def __init__(self, positions: np.ndarray) -> None:
        self.positions = positions
        self._hash = hash(positions.tobytes())
        self._on: dict[torch.device, Tensor] = {}

    @classmethod
    def of(cls, positions: np.ndarray) -> Scattered:
        key = positions.astype(np.int64).tobytes()
        found = _KNOWN.get(key)
        if found is None:
            found = _KNOWN[key] = cls(positions)
        return found

    def on(self, device: torch.device) -> Tensor:
        """The positions as a tensor. Made once: a copy to a GPU waits for it and cannot be recorded."""
        if device not in self._on:
            self._on[device] = torch.from_numpy(self.positions.copy()).to(device)
        return self._on[device]

    def __len__(self) -> int:
        return len(self.positions)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Scattered) and np.array_equal(self.positions, other.positions))

    def __repr__(self) -> str:
        return f"Scattered({self.positions.tolist()})"


_KNOWN: WeakValueDictionary[bytes, Scattered] = WeakValueDictionary()

Axis: TypeAlias = range | Scattered
"""Ascending positions along one dimension; a range where they are consecutive."""

_NEARLY_ALL = 0.8  # scattered positions past this share of a dimension are carried as all of it: no gathering


def positions_of(axis: Axis) -> np.ndarray:
    return axis.positions if isinstance(axis, Scattered) else np.arange(axis.start, axis.stop, dtype=np.int64)


def carried(positions: np.ndarray) -> Axis:
    """Ascending positions exactly as given: those along which a tangent is carried already."""
    if not len(positions):
        return range(0)
    first, last = int(positions[0]), int(positions[-1])
    return range(first, last + 1) if last - first + 1 == len(positions) else Scattered.of(positions)


def axis_of(positions: np.ndarray, size: int) -> Axis:
    """Positions along a dimension of this size, in any order and repeated or not."""
    found = carried(np.unique(positions))
    if not found:
        return range(min(size, 1))  # nothing: one position, which holds zeros, keeps every shape legal
    return range(size) if isinstance(found, Scattered) and len(found) > _NEARLY_ALL * size else found


def hull(axis: Axis) -> range:
    """All positions from the first to the last."""
    return axis if isinstance(axis, range) else range(int(axis.positions[0]), int(axis.positions[-1]) + 1)


def _union(a: Axis, b: Axis, size: int) -> Axis:
    if a == b or len(a) == size:
        return a
    if len(b) == size:
        return b
    if isinstance(a, range) and isinstance(b, range) and max(a.start, b.start) <= min(a.stop, b.stop):
        return range(min(a.start, b.start), max(a.stop, b.stop))
    return axis_of(np.concatenate([positions_of(a), positions_of(b)]), size)


@dataclass(frozen=True)
class Region:
    """A product of positions, one set for each dimension of a value of shape ``shape``.

    Examples
    --------
    >>> Region((3, 8, 8), (range(3), range(2, 4), range(2, 4))).sizes
    (3, 2, 2)
    """

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        return cls(tuple(shape), tuple(range(n) for n in shape))

    @classmethod
    def around(cls, flat: Tensor, shape: Sequence[int]) -> Region:
        """The smallest region that holds all of these flat coordinates."""
        places = np.unravel_index(flat.cpu().numpy(), tuple(shape)) if len(shape) else ()
        return cls(tuple(shape), tuple(axis_of(p, n) for p, n in zip(places, shape, strict=True)))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(a) for a in self.axes)

    @cached_property
    def is_whole(self) -> bool:
        return self.sizes == self.shape

    @property
    def count(self) -> int:
        return math.prod(self.sizes)

    def widened(self, *dims: int) -> Region:
        """The same with all positions along these dimensions."""
        chosen = {d % len(self.shape) for d in dims} if self.shape else set()
        return Region(self.shape, tuple(range(self.shape[d]) if d in chosen else a for d, a in enumerate(self.axes)))

    def union(self, other: Region) -> Region:
        """The smallest region that holds both."""
        pairs = zip(self.axes, other.axes, self.shape, strict=True)
        return Region(self.shape, tuple(_union(a, b, n) for a, b, n in pairs))

    def cut(self, value: Tensor) -> Tensor:
        """The part of a whole value, or of one that broadcasts to it, that belongs to this region."""
        ahead = len(self.shape) - value.ndim
        whole = True
        for d, size in enumerate(value.shape):
            axis = self.axes[ahead + d]
            if size == 1 or len(axis) == size:
                continue
            whole = False
            value = take(value, d, axis)
        return value if whole else value.contiguous()

    def moved(self, tangent: Tensor, to: Region) -> Tensor:
        """A chunk of tangents carried on this region, carried on another: cut, and filled with zeros."""
        moves = self._moves.get(to)
        if moves is None:
            moves = self._moves[to] = [_move(a, b) for a, b in zip(self.axes, to.axes, strict=True)]
        pads: list[int] = []
        for dim, move in enumerate(moves):
            tangent = move.cut(tangent, dim + 1)
            pads[:0] = move.pad
        return torch.constant_pad_nd(tangent, pads, 0.0) if any(pads) else tangent

    @cached_property
    def _moves(self) -> dict[Region, list[_Move]]:
        """What was worked out once; it lives as long as the region, and with it what a recorded graph reads."""
        return {}

    def part(self, total: Tensor, inner: Region) -> Tensor | None:
        """The view of a chunk carried here that belongs to an inner region, where there is such a view."""
        for d, (a, b) in enumerate(zip(self.axes, inner.axes, strict=True)):
            if a == b:
                continue
            if not isinstance(a, range) or not isinstance(b, range) or b.start < a.start or b.stop > a.stop:
                return None
            total = total.narrow(d + 1, b.start - a.start, len(b))
        return total

    @cached_property
    def places(self) -> np.ndarray:
        """Flat positions in the whole value, ascending: in the order in which the region is carried."""
        flat: np.ndarray = np.zeros(1, dtype=np.int64)
        for axis, size in zip(self.axes, self.shape, strict=True):
            flat = (flat[:, None] * size + positions_of(axis)).reshape(-1)
        return flat

    @cached_property
    def index(self) -> Scattered:
        """The same, as an index."""
        return Scattered.of(self.places)


def take(tangent: Tensor, dim: int, places: Axis) -> Tensor:
    """Some entries along a dimension; a view where they are consecutive."""
    if isinstance(places, range):
        return tangent if len(places) == tangent.shape[dim] else tangent.narrow(dim, places.start, len(places))
    return tangent.index_select(dim, places.on(tangent.device))


@dataclass(frozen=True)
class _Move:
    """Along one dimension: which entries are kept, where they go among ``size`` (``None``: in order), and padding."""

    kept: Axis | None = None
    goes: Scattered | None = None
    size: int = 0
    pad: tuple[int, int] = (0, 0)

    def cut(self, tangent: Tensor, dim: int) -> Tensor:
        if self.kept is None:
            return tangent
        found = take(tangent, dim, self.kept)
        if self.goes is None:
            return found
        out = tangent.new_zeros(*tangent.shape[:dim], self.size, *tangent.shape[dim + 1 :])
        return out.index_copy_(dim, self.goes.on(tangent.device), found)


def _move(have: Axis, want: Axis) -> _Move:
    if have == want:
        return _Move()
    a, b = positions_of(have), positions_of(want)
    at = np.minimum(np.searchsorted(a, b), max(len(a) - 1, 0))
    both = np.flatnonzero(a[at] == b) if len(a) else at[:0]
    kept = carried(at[both])
    if len(both) and isinstance(carried(both), range):  # the rest lies before and after
        return _Move(kept, pad=(int(both[0]), len(b) - 1 - int(both[-1])))
    return _Move(kept, Scattered.of(both), len(b))


@dataclass(frozen=True)
class Reshaped:
    """How a region passes through a change of shape: as groups of dimensions that become other groups.

    ``have`` and ``want`` count one dimension for each group: a tangent is brought from the first to the second where
    the new dimensions need more than the old ones held, and then carried on ``gives``.
    """

    have: Region
    want: Region
    gives: Region

    def push(self, tangent: Tensor) -> Tensor:
        chunk = len(tangent)
        if self.have.axes != self.want.axes:
            tangent = self.have.moved(tangent.reshape(chunk, *self.have.sizes), self.want)
        return tangent.reshape(chunk, *self.gives.sizes)


@lru_cache(maxsize=4096)
def reshaped(region: Region, shape: tuple[int, ...]) -> Reshaped:
    """A region of a value that is viewed in another shape.

    >>> reshaped(Region((8, 8), (range(2, 4), range(8))), (64,)).gives.axes
    (range(16, 32),)
    """
    if 0 in shape or region.is_whole:
        flat = Region.whole((math.prod(shape),))
        return Reshaped(flat, flat, Region.whole(shape))
    sizes: list[int] = []
    have: list[Axis] = []
    want: list[Axis] = []
    gives: list[Axis] = []
    for old, new in _groups(region.shape, shape):
        axes = [region.axes[d] for d in old]
        size = math.prod(region.shape[d] for d in old)
        merged = Region(tuple(region.shape[d] for d in old), tuple(axes))
        kept: Axis = range(size) if merged.is_whole else carried(merged.places)
        sizes.append(size)
        if merged.is_whole:
            parts: tuple[Axis, ...] = tuple(range(shape[d]) for d in new)
        elif len(new) == 1:
            parts = (kept,)
        else:
            inner = tuple(shape[d] for d in new)
            split = np.unravel_index(positions_of(kept), inner)
            parts = tuple(axis_of(p, n) for p, n in zip(split, inner, strict=True))
        needed = Region(tuple(shape[d] for d in new), parts)
        have.append(kept)
        want.append(range(size) if needed.is_whole else carried(needed.places))
        gives += parts
    return Reshaped(Region(tuple(sizes), tuple(have)), Region(tuple(sizes), tuple(want)), Region(shape, tuple(gives)))


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of the old shape and those of the new one that they become, as small groups as the sizes allow."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if a == b and left and right:
                break
            if a <= b and i < len(old):
                a *= old[i]
                left.append(i)
                i += 1
            elif j < len(new):
                b *= new[j]
                right.append(j)
                j += 1
            elif i < len(old):
                a *= old[i]
                left.append(i)
                i += 1
            else:
                break
        groups.append((left, right))
    return groups
