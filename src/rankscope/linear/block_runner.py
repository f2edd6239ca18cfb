"""The part of a model between two cut points as a function of its own: what enters is put in the place of an output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import MeasurementError
from rankscope.linear.runner import Rows, Runner
from rankscope.slicing import CallKey, Sample
from rankscope.slicing.members import every_member, members, with_member

__all__ = ["BlockRunner"]


class BlockRunner(Runner):
    """``outputs(sample, z)`` runs the model on its own input, with ``z`` in place of what ``start`` returned.

    What comes before runs on the plain input, so it costs one forward pass however many tangents are pushed; what
    comes after ``end`` does not run. This is the block's own function exactly when ``start`` is a true cut, since
    then nothing passes around it. ``start`` is None for the model's input itself.
    """

    def __init__(
        self,
        model: nn.Module,
        start: CallKey | None,
        end: CallKey,
        source: Sample,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(model, [end], device, dtype)
        self.start, self.source = start, source
        self._entering: Tensor | None = None
        self._calls = 0

    def in_dtype(self, dtype: torch.dtype) -> BlockRunner:
        source = self.source.to(self.device, dtype)
        return BlockRunner(self.model, self.start, self.keys[0], source, self.device, dtype)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        if self.start is None or self._capture is not None:
            with super().hooked():
                yield
            return
        # placed before the capturing hook, so that one that follows the same module sees the replaced output
        handle = self.model.get_submodule(self.start.module).register_forward_hook(self._replace)
        try:
            with super().hooked():
                yield
        finally:
            handle.remove()

    def _replace(self, module: nn.Module, _: Any, output: Any) -> Any:
        assert self.start is not None
        index, self._calls = self._calls, self._calls + 1
        if index != self.start.call or self._entering is None:
            return None
        # a copy: the block may write into it
        paths = self.start.parts or tuple(members(output))
        if len(paths) != 1 or paths[0] not in every_member(output):
            raise MeasurementError(
                f"{self.start.module!r} returned {len(paths)} tensors that can be differentiated where 1 was traced; "
                "the model's path depends on its input"
            )
        return with_member(output, paths[0], self._entering.clone())

    def _begin(self) -> None:
        super()._begin()
        self._calls = 0

    def outputs(self, sample: Sample, x: Tensor, rows: Rows = None, *, fresh: bool = True) -> tuple[Tensor, ...]:
        if self.start is None:
            return super().outputs(self.source, x, rows, fresh=fresh)
        self._entering = x
        try:
            return super().outputs(self.source, self.source.x, rows, fresh=fresh)
        finally:
            self._entering = None
