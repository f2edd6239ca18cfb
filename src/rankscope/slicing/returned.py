"""One forward pass with autograd's graph, and what each of its calls returned, without holding any of it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import ModelError
from rankscope.slicing.capture import capture
from rankscope.slicing.grad_mode import StaysOn, recording_through
from rankscope.slicing.members import Path, every_member, members, objects, real
from rankscope.slicing.one_sample import call_failed
from rankscope.slicing.paths import Paths, Place
from rankscope.slicing.same import version_of
from rankscope.slicing.sample import Sample, call_model

__all__ = ["CallResult", "Returned", "Run"]


@dataclass
class Returned:
    """One tensor that a module returned, without holding it."""

    shape: tuple[int, ...]
    place: Place | None
    version: int
    complex: bool
    tensor: weakref.ref[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Returned:
        place = None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)
        return cls(tuple(real(tensor).shape), place, version_of(tensor), tensor.is_complex(), weakref.ref(tensor))

    def same(self, other: Returned) -> bool:
        if self.place is not None or other.place is not None:
            return self.place == other.place
        mine = self.tensor()
        return mine is not None and mine is other.tensor() and self.version == other.version


@dataclass
class CallResult:
    """What one call returned: tensors by path (each tensor once), and what cannot be looked into."""

    module: nn.Module
    returned: dict[Path, Returned]
    records: dict[Path, Returned]
    objects: dict[Path, str]

    @classmethod
    def of(cls, module: nn.Module, output: Any) -> CallResult:
        results = members(output)
        made: dict[Path, Returned] = {}
        records: dict[Path, Returned] = {}
        outside = objects(output)
        for path, tensor in every_member(output).items():
            if tensor.is_meta or tensor.is_nested:  # a nested one has no shape
                outside[path] = "tensor on the meta device" if tensor.is_meta else "nested tensor"
                continue
            one = Returned.of(tensor)
            into = made if path in results else records
            if not any(one.same(other) for other in made.values()):
                into[path] = one
        return cls(module, made, records, outside)


class Run:
    """One forward pass and what its calls returned."""

    def __init__(self, model: nn.Module, sample: Sample, *, mode: StaysOn | None = None) -> None:
        self.calls: dict[tuple[str, int], CallResult] = {}

        def take(key: tuple[str, int], module: nn.Module, output: Any) -> bool:
            self.calls[key] = CallResult.of(module, output)
            return True

        leaf = sample.x.detach().clone()
        with torch.inference_mode(False), torch.enable_grad(), recording_through(model, mode):
            self.leaf = leaf.clone().requires_grad_()
            with capture(model, None, take):
                try:
                    # × 1: an in-place operation on a leaf would be refused
                    self.made = call_model(model, sample, self.leaf * 1)
                except Exception as error:
                    what = f"{type(model).__name__} failed on an input of shape {tuple(leaf.shape)}"
                    raise call_failed(model, what, sample, error) from error
            self.output = CallResult.of(model, self.made)
        self.through = mode is not None and mode.needed
        self.complete = mode is not None
        """Whether what the graph does not hold has no derivative."""
        if not self.output.returned:
            raise ModelError(_nothing(model, self.output))
        self.paths = Paths([r.place for r in self.output.returned.values() if r.place is not None], self.leaf)


def _nothing(model: nn.Module, output: CallResult) -> str:
    name = type(model).__name__
    if output.objects:
        path, kind = next(iter(output.objects.items()))
        where = f" at {path!r}" if path else ""
        return (
            f"return tensors with values from {name}, alone or in a tuple, list, dict, named tuple or dataclass; it "
            f"returned a {kind}{where}"
        )
    return f"{name} returned no floating-point tensor; there is nothing to measure"
