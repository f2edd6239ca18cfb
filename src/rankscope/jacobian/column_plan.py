"""How the columns at samples of one shape are pushed: where they may differ from zero, how many at once."""

from __future__ import annotations

from rankscope.jacobian.combinations import Combinations
from rankscope.linear.budget import MANY, bytes_carried, bytes_per_tangent, chunk_for
from rankscope.linear.derivative import Derivative
from rankscope.linear.regions import Region
from rankscope.slicing import Sample

__all__ = ["ColumnPlan"]


class ColumnPlan:
    """What depends on a sample's shape and on how tangents are pushed is worked out once."""

    def __init__(self, derivative: Derivative) -> None:
        self.derivative, self.settings = derivative, derivative.settings
        self._dense: set[tuple[int, ...]] = set()
        self._chunks: dict[tuple[tuple[int, ...], bool], int] = {}
        self._regions: dict[tuple[int, ...], Region | None] = {}
        self._combinations: dict[tuple[int, ...], Combinations] = {}

    def chunk(self, sample: Sample, columns: int) -> int:
        """How many of the columns are pushed at once."""
        if self.settings.chunk_size != "auto":
            return min(self.settings.chunk_size, columns)
        device, half = self.settings.device, self.settings.budget // 2
        key = tuple(sample.x.shape), self.derivative.traced
        if key not in self._chunks:
            runner = self.derivative.runner
            linearised, region = self.derivative.linearised, self.region(sample)
            if linearised is not None and region is not None:
                each = bytes_carried(linearised.at(runner, sample, region), device)
                self._chunks[key] = chunk_for(columns, each, half, device, limit=MANY[device.type == "cuda"])
            else:
                each = bytes_per_tangent(runner, sample, linear=linearised is not None)
                self._chunks[key] = chunk_for(columns, each, half, device)
        return self._chunks[key]

    def dense(self, sample: Sample) -> bool:
        """Whether rows of zeros need not be looked for, which takes a GPU a pass and the host a wait for it."""
        return self.settings.device.type == "cuda" and tuple(sample.x.shape) in self._dense

    def saw(self, sample: Sample, *, dense: bool) -> None:
        """Take note of whether a sweep kept nearly all rows that can be reached."""
        if dense:
            self._dense.add(tuple(sample.x.shape))

    def region(self, sample: Sample) -> Region | None:
        """Where one image's tangents may differ from zero; ``None``: everywhere."""
        shape = tuple(sample.x.shape[1:])
        if shape not in self._regions:
            flat = self.settings.columns.coordinates(shape)
            region = None if flat is None else Region.around(flat, shape)
            self._regions[shape] = None if region is None or region.is_whole else region
        return self._regions[shape]

    def combinations(self, sample: Sample) -> Combinations:
        """The random combinations of the columns that look for zero rows and certify."""
        shape = tuple(sample.x.shape[1:])
        if shape not in self._combinations:
            self._combinations[shape] = Combinations(
                self.settings.columns, shape, self.settings.device, self.settings.dtype
            )
        return self._combinations[shape]
