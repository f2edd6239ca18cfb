"""A Jacobian as a matrix that is known through products with columns: what Krylov methods and SciPy multiply with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankscope._base.errors import MeasurementError, is_out_of_memory
from rankscope.linear.budget import bytes_per_tangent, chunk_for
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.runner import Rows

__all__ = ["Matrix"]


@dataclass
class Matrix:
    """J of all cut points, one below the other, and Jᵀ. ``sizes`` are the cut points' rows."""

    map: LinearMap
    sizes: tuple[int, ...]
    budget: int
    """Bytes that the tangents pushed at once may take."""
    chunk: int | None = None
    """How many tangents are pushed at once; measured at the first push where it is not given, and halved where memory
    runs out."""
    batched: bool = True
    """Whether cotangents are pulled together on a GPU, where one backward pass alone leaves most of it idle."""
    pushes_less: bool = field(default=False, init=False)
    """Whether memory ran out, so that fewer tangents are pushed at once."""
    pulls_less: bool = field(default=False, init=False)
    """The same of cotangents, which are pulled one by one since then."""

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self.sizes), self.map.sample.x[0].numel()

    def push(self, columns: Tensor, rows: Rows = None) -> Tensor:
        """J times (columns, r), shape (rows, r); ``rows`` chooses some of each cut point."""
        tangents = columns.T.reshape(-1, *self.map.sample.x.shape[1:])
        count, start = len(tangents), 0
        chunk = self._chunk(count)
        parts: list[Tensor] = []
        while start < count:
            try:
                parts.append(torch.cat(self.map.push(tangents[start : start + chunk], rows), 1))
            except RuntimeError as error:
                if not is_out_of_memory(error) or chunk == 1 or self.map.method.whole:
                    raise
                self.relieve()
                self.chunk, self.pushes_less = chunk // 2, True
                chunk = self.chunk
            else:
                start += chunk
        return torch.cat(parts).T if parts else columns.new_zeros(self.shape[0], 0)

    def pull(self, cotangents: Tensor) -> Tensor:
        """Jᵀ times (rows, r), shape (columns, r): one forward pass, and one backward pass per column or per few."""
        parts = cotangents.T.contiguous().split(self.sizes, 1)
        count = cotangents.shape[1]
        if not count:
            return cotangents.new_zeros(self.shape[1], 0)
        together = self._together(count)
        try:
            found = self.map.pull(parts, together)
        except (RuntimeError, MeasurementError) as error:  # an operator without a rule for vmap, or too little memory
            if together == 1:
                raise
            if is_out_of_memory(error):
                self.relieve()
                self.pulls_less = True
            self.batched = False
            found = self.map.pull(parts)
        return found.reshape(count, -1).T

    def _together(self, count: int) -> int:
        return max(self._chunk(count), 1) if self.batched and self.map.device.type == "cuda" else 1

    def relieve(self) -> None:
        """Memory ran out: what is cached goes back to the device."""
        if self.map.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def fits(self) -> int:
        """``chunk``, measured where it is not known."""
        if self.chunk is None:
            runner, sample = self.map.runner, self.map.sample
            with runner.hooked(), self.map.arithmetic():
                each = bytes_per_tangent(runner, sample, linear=self.map.traced is not None)
            self.chunk = chunk_for(2**31, each, self.budget, runner.device)
        return self.chunk

    def _chunk(self, count: int) -> int:
        if self.map.method.whole:
            return max(count, 1)
        passes = -(-count // self.fits)  # evenly spread
        return max(-(-count // max(passes, 1)), 1)
