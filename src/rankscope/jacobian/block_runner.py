"""The part of a model between two cut points as a function of its own: what enters is put in the place of an output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import MeasurementError
from rankscope.jacobian.runner import Runner
from rankscope.slicing import CallKey, Sample

__all__ = ["BlockRunner", "with_first_tensor"]


def with_first_tensor(output: Any, tensor: Tensor) -> tuple[Any, bool]:
    """A module's output with its first floating-point tensor replaced, and whether there was one.

    >>> with_first_tensor((torch.tensor([1]), torch.tensor([2.0])), torch.tensor([3.0]))
    ((tensor([1]), tensor([3.])), True)
    """
    if isinstance(output, Tensor):
        return (tensor, True) if output.is_floating_point() else (output, False)
    if isinstance(output, Mapping):
        items, done = {}, False
        for key, member in output.items():
            items[key], here = (member, False) if done else with_first_tensor(member, tensor)
            done = done or here
        return (items if type(output) is dict else type(output)(**items)), done
    if isinstance(output, list | tuple):
        members, done = [], False
        for member in output:
            made, here = (member, False) if done else with_first_tensor(member, tensor)
            members.append(made)
            done = done or here
        whole = type(output)(*members) if hasattr(output, "_fields") else type(output)(members)
        return whole, done
    if hasattr(output, "__dataclass_fields__"):
        for name, member in vars(output).items():
            made, here = with_first_tensor(member, tensor)
            if here:
                return replace(output, **{name: made}), True
    return output, False


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

    @contextmanager
    def hooked(self) -> Iterator[None]:
        if self.start is None:
            with super().hooked():
                yield
            return
        # placed before the capturing hook, so that one that follows the same module sees the replaced output
        handle = self.model.get_submodule(self.start[0]).register_forward_hook(self._replace)
        try:
            with super().hooked():
                yield
        finally:
            handle.remove()

    def _replace(self, module: nn.Module, _: Any, output: Any) -> Any:
        assert self.start is not None
        index, self._calls = self._calls, self._calls + 1
        if index != self.start[1] or self._entering is None:
            return None
        # a copy: the block may write into it
        made, found = with_first_tensor(output, self._entering.clone())
        if not found:
            raise MeasurementError(f"{self.start[0]!r} returned no floating-point tensor to take the place of")
        return made

    def outputs(self, sample: Sample, x: Tensor) -> tuple[Tensor, ...]:
        self._calls = 0
        if self.start is None:
            return super().outputs(self.source, x)
        self._entering = x
        try:
            return super().outputs(self.source, self.source.x)
        finally:
            self._entering = None
