"""Which directions of the input the Jacobian is taken along: a patch's coordinates, random directions, or all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from rankscope._base.checks import count_of
from rankscope._base.errors import UsageError, nearest, parameter
from rankscope._base.text import noun

__all__ = ["All", "Columns", "ColumnsByShape", "ColumnsLike", "Patch", "Positions", "Sketch", "as_columns"]

Shape: TypeAlias = tuple[int, ...]


class Columns(Protocol):
    """K directions of an input space of a given shape."""

    def count(self, shape: Shape) -> int:
        """K, for inputs of this shape (without the batch dimension); raises where the choice does not fit."""

    def coordinates(self, shape: Shape) -> Tensor | None:
        """Flat input coordinates, ascending, or ``None`` where the directions are not coordinates."""

    def tangents(self, shape: Shape, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Directions start … stop − 1 as a tensor of shape (stop − start, *shape)."""

    def describe(self) -> str:
        """One phrase for results and figures."""


@lru_cache(maxsize=16)
def _coordinates_on(columns: Columns, shape: Shape, device: torch.device) -> Tensor:
    """A columns' coordinates on a device; asked for once a chunk, and each copy there would wait for the GPU."""
    flat = columns.coordinates(shape)
    assert flat is not None
    return flat.to(device)


def _one_hot(flat: Tensor, shape: Shape, device: torch.device, dtype: torch.dtype) -> Tensor:
    out = torch.zeros(len(flat), math.prod(shape), device=device, dtype=dtype)
    out.scatter_(1, flat[:, None], 1.0)
    return out.view(len(flat), *shape)


@dataclass(frozen=True)
class Patch:
    """The coordinates of a rectangular patch of an image (paper, Eq. 5), or any explicit list of coordinates.

    Parameters
    ----------
    size : int or (int, int)
        Height and width in pixels; 16 as in the paper, where K = 16·16·3 = 768.
    centre : (int, int), optional
        Row and column of the patch's centre; default: the image's. The patch starts at centre − size // 2.
    offset : (int, int), optional
        Row and column of the patch's first pixel, instead of ``centre``.
    channels : sequence of int, optional
        Channels to include; default: all.
    coordinates : sequence of int or of index tuples, optional
        Explicit coordinates instead of a rectangle: flat indices, or one index tuple per coordinate.

    Raises
    ------
    UsageError
        When the patch reaches outside the input, or coordinates repeat.

    Examples
    --------
    >>> Patch(16).count((3, 224, 224))
    768
    >>> Patch(2, offset=(0, 0), channels=[0]).coordinates((1, 4, 4)).tolist()
    [0, 1, 4, 5]
    """

    size: int | tuple[int, int] = 16
    centre: tuple[int, int] | None = None
    offset: tuple[int, int] | None = None
    channels: tuple[int, ...] | None = None
    coordinates_: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None

    def __init__(
        self,
        size: int | tuple[int, int] = 16,
        *,
        centre: Sequence[int] | None = None,
        offset: Sequence[int] | None = None,
        channels: Sequence[int] | None = None,
        coordinates: Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> None:
        if centre is not None and offset is not None:
            raise UsageError(f"give a patch's centre {tuple(centre)} or its offset {tuple(offset)}, not both")
        set_ = object.__setattr__
        sizes = _whole(size, "size", (1, 2))
        set_(self, "size", sizes[0] if len(sizes) == 1 else sizes)
        set_(self, "centre", None if centre is None else _whole(centre, "centre", (2,)))
        set_(self, "offset", None if offset is None else _whole(offset, "offset", (2,)))
        set_(self, "channels", None if channels is None else _whole(channels, "channels"))
        explicit = None
        if coordinates is not None:
            explicit = tuple(
                _whole(c, "coordinates")[0] if isinstance(c, Real) else _whole(c, "coordinates")
                for c in _plain(coordinates)
            )
        set_(self, "coordinates_", explicit)
        height, width = self._extent()
        if min(height, width) < 1:
            raise UsageError(f"a patch of {height}×{width} pixels is empty; give a size of at least 1")

    def _extent(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def coordinates(self, shape: Shape) -> Tensor:
        if self.coordinates_ is not None:
            return self._explicit(shape)
        if len(shape) != 3:
            raise UsageError(
                f"a patch needs inputs of shape (channels, height, width); these are {shape}. "
                f"Use {parameter('columns', 'all')}, a sketch, or explicit coordinates"
            )
        channels, image_height, image_width = shape
        height, width = self._extent()
        if self.offset is not None:
            top, left = self.offset
        else:
            row, column = self.centre if self.centre is not None else (image_height // 2, image_width // 2)
            top, left = row - height // 2, column - width // 2
        if top < 0 or left < 0 or top + height > image_height or left + width > image_width:
            raise UsageError(
                f"the patch covers rows {top}…{top + height - 1} and columns {left}…{left + width - 1}, outside the "
                f"{image_height}×{image_width} image; choose a smaller size or another offset"
            )
        chosen = tuple(range(channels)) if self.channels is None else self.channels
        outside = [c for c in chosen if not 0 <= c < channels]
        if outside or not chosen or len(set(chosen)) != len(chosen):
            raise UsageError(
                f"channels {list(chosen)} of an input with {channels} channels; give distinct 0…{channels - 1}"
            )
        grid = torch.arange(math.prod(shape)).view(shape)
        return grid[list(chosen), top : top + height, left : left + width].reshape(-1).sort().values

    def _explicit(self, shape: Shape) -> Tensor:
        size = math.prod(shape)
        flat = []
        for c in self.coordinates_ or ():
            index = (c,) if isinstance(c, int) else c
            limits = (size,) if isinstance(c, int) else shape
            if len(index) != len(limits) or any(not 0 <= i < n for i, n in zip(index, limits, strict=True)):
                raise UsageError(f"coordinate {c} is outside an input of shape {shape} ({size} values)")
            place = 0
            for i, n in zip(index, limits, strict=True):
                place = place * n + i
            flat.append(place)
        if len(set(flat)) != len(flat) or not flat:
            raise UsageError(f"{len(flat)} coordinates with {len(flat) - len(set(flat))} repeats; give distinct ones")
        return torch.tensor(sorted(flat))

    def count(self, shape: Shape) -> int:
        return len(self.coordinates(shape))

    def tangents(self, shape: Shape, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return _one_hot(_coordinates_on(self, shape, device)[start:stop], shape, device, dtype)

    def describe(self) -> str:
        if self.coordinates_ is not None:
            return f"{len(self.coordinates_)} chosen {noun(len(self.coordinates_), 'coordinate')}"
        height, width = self._extent()
        if self.offset is not None:
            where = f"at offset {self.offset}"
        else:
            where = "at the centre" if self.centre is None else f"centred at {self.centre}"
        channels = "" if self.channels is None else f", channels {list(self.channels)}"
        return f"{height}×{width} patch {where}{channels}"


def _plain(values: Any) -> list[Any]:
    """The values of a sequence, array or tensor; one value alone is a list of itself."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    return list(listed) if isinstance(listed, Iterable) and not isinstance(listed, str | bytes) else [listed]


def _whole(values: Any, name: str, lengths: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Whole numbers, of either sign, and as many as one of ``lengths``."""
    found = _plain(values)
    wrong = any(isinstance(i, bool) or not isinstance(i, Integral) for i in found)
    if wrong or (lengths and len(found) not in lengths):
        count = f"{' or '.join(map(str, lengths))} " if lengths else ""
        raise UsageError(f"{parameter(name)} is {' '.join(repr(values).split())}; give {count}whole numbers")
    return tuple(int(i) for i in found)


@dataclass(frozen=True)
class Positions:
    """All coordinates of chosen positions along the first dimension after the batch: a token with all its channels.

    Negative positions count from the end, as in Python: −1 is the last token of texts of every length.

    Raises
    ------
    UsageError
        When a position is outside the input, or positions repeat.

    Examples
    --------
    >>> Positions([0, -1]).coordinates((3, 2)).tolist()
    [0, 1, 4, 5]
    """

    positions: tuple[int, ...]

    def __init__(self, positions: int | Sequence[int]) -> None:
        listed = _plain(positions)
        wrong = [p for p in listed if isinstance(p, bool) or not isinstance(p, Integral)]
        if wrong or not listed:
            raise UsageError(f"positions is {positions!r}; give whole numbers, such as [3] or [0, -1]")
        object.__setattr__(self, "positions", tuple(int(p) for p in listed))

    def coordinates(self, shape: Shape) -> Tensor:
        length = shape[0] if shape else 0
        for p in self.positions:
            if not -length <= p < length:
                raise UsageError(
                    f"position {p} is outside an input of {length} positions (shape {shape}); give "
                    f"0…{length - 1}, or -1…-{length} from the end"
                )
        chosen = [p % length for p in self.positions]
        if len(set(chosen)) != len(chosen):
            raise UsageError(f"positions {list(self.positions)} repeat in an input of {length}; give distinct ones")
        return torch.arange(math.prod(shape)).view(length, -1)[sorted(chosen)].reshape(-1)

    def count(self, shape: Shape) -> int:
        return len(self.coordinates(shape))

    def tangents(self, shape: Shape, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return _one_hot(_coordinates_on(self, shape, device)[start:stop], shape, device, dtype)

    def describe(self) -> str:
        where = noun(len(self.positions), "position")
        return f"all coordinates of {where} {', '.join(map(str, self.positions))}"


@dataclass(frozen=True)
class Sketch:
    """K random directions: JΩ with independent standard normal Ω has rank min(K, rank J) almost surely.

    Direction j depends on ``seed`` and j alone: not on K, the chunk size or the device.

    >>> Sketch(8, seed=1).count((3, 4, 4))
    8
    """

    k: int = 768
    seed: int = 0

    def __post_init__(self) -> None:
        k: Any = self.k
        if isinstance(k, Real) and k < 1:
            raise UsageError(f"a sketch of {k} directions is empty; give k of at least 1")
        object.__setattr__(self, "k", count_of(self.k, "k", most=2**24))  # each direction has its own seed
        object.__setattr__(self, "seed", count_of(self.seed, "seed", least=0, most=2**40 - 1))

    def count(self, shape: Shape) -> int:
        size = math.prod(shape)
        if self.k > size:
            raise UsageError(
                f"a sketch of {self.k} directions exceeds the input's {size} dimensions; use "
                f"{parameter('columns', 'all')}"
            )
        return self.k

    def coordinates(self, shape: Shape) -> None:
        return None

    def tangents(self, shape: Shape, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator()
        rows = []
        for j in range(start, stop):
            generator.manual_seed((self.seed << 24) + j)
            rows.append(torch.randn(shape, generator=generator))
        return torch.stack(rows).to(device, dtype)

    def describe(self) -> str:
        return f"{self.k} random {noun(self.k, 'direction')} (seed {self.seed})"


@dataclass(frozen=True)
class All:
    """Every input coordinate: the full Jacobian.

    >>> All().count((1, 8, 8))
    64
    """

    def count(self, shape: Shape) -> int:
        return math.prod(shape)

    def coordinates(self, shape: Shape) -> Tensor:
        return torch.arange(math.prod(shape))

    def tangents(self, shape: Shape, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return _one_hot(_coordinates_on(self, shape, device)[start:stop], shape, device, dtype)

    def describe(self) -> str:
        return "all input coordinates"


ColumnsLike: TypeAlias = Patch | Positions | Sketch | All | Literal["all", "auto"] | Columns
_AUTO_ALL = 1024  # up to this many inputs the full Jacobian costs no more than the paper's patch


def as_columns(value: ColumnsLike, shape: Shape) -> Columns:
    """The columns for inputs of this shape.

    ``"auto"``: all coordinates up to 1,024 of them, the paper's central 16×16 patch for larger images, and a sketch of
    768 directions for anything else.
    """
    check_columns(value)
    if isinstance(value, str):
        if value == "all":
            return All()
        size = math.prod(shape)
        if size <= _AUTO_ALL:
            return All()
        if len(shape) == 3 and min(shape[1:]) >= 16 and shape[0] <= 16:
            return Patch(16)
        return Sketch(min(768, size))
    value.count(shape)
    return value


def check_columns(value: Any) -> None:
    """Refuse what chooses no columns of any input, whatever its shape."""
    if isinstance(value, str):
        if value not in ("all", "auto"):
            raise UsageError(
                f"unknown columns {value!r} ({nearest(value, ['all', 'auto'])}); or give a Patch, Positions or a Sketch"
            )
    elif not hasattr(value, "tangents"):
        remedy = f"Patch({value})" if type(value) is int else "a Patch"
        raise UsageError(f"columns is {value!r}; give {remedy}, Positions, a Sketch, 'all' or 'auto'")


class ColumnsByShape:
    """One choice for inputs of several shapes: ``"auto"`` is decided for each, and K differs between them.

    >>> choice = ColumnsByShape("auto")
    >>> choice.count((4, 8)), choice.count((100, 32))
    (32, 768)
    """

    def __init__(self, wanted: ColumnsLike) -> None:
        check_columns(wanted)  # here, so that the error names no sample
        self.wanted = wanted
        self._made: dict[Shape, Columns] = {}

    def of(self, shape: Shape) -> Columns:
        """The columns for one shape; raises ``UsageError`` where the choice does not fit it."""
        if shape not in self._made:
            self._made[shape] = as_columns(self.wanted, shape)
        return self._made[shape]

    def count(self, shape: Shape) -> int:
        return self.of(shape).count(shape)

    def coordinates(self, shape: Shape) -> Tensor | None:
        return self.of(shape).coordinates(shape)

    def tangents(self, shape: Shape, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.of(shape).tangents(shape, start, stop, device, dtype)

    def describe(self) -> str:
        """The phrases of all that were made so far."""
        return ", or ".join(dict.fromkeys(made.describe() for made in self._made.values()))
