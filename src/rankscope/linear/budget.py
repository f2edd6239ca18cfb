"""How many tangents to push at once, so that a sweep stays within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from rankscope._base.errors import DeviceError, parameter
from rankscope.linear.at_point import AtPoint
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample

__all__ = ["MANY", "bytes_carried", "bytes_of_pass", "bytes_per_tangent", "chunk_for"]

# The largest operator's inputs and outputs, times what a forward-mode formula keeps alive at once (measured)
_SAFETY = 3.0
_SAFETY_LINEAR = 1.4
_CONVOLVE = torch.ops.aten.convolution.default  # what every convolution is, transposed ones too, below autograd
_CONVOLUTION = 3.75  # cuDNN's workspace comes on top of a convolution's inputs and outputs (measured)
_PLAIN = (Tensor, nn.Parameter)  # others may have no memory to ask for


MANY = {True: 256, False: 32}
"""Tangents a chunk where each is carried on a part of a map, by whether it is a GPU: more hold more, hardly faster."""


class _LargestOperator(TorchDispatchMode):
    """Remembers the largest sum of input and output bytes of one operator.

    Weights are there once for however many tangents and do not count, but at a convolution: its workspace was measured
    with them.
    """

    def __init__(self, convolution: float, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.convolution = convolution
        self.weights = {_memory(w) for w in weights} - {0}
        self.bytes = 0.0
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_flatten((args, out))[0] if isinstance(t, Tensor)]
        if not func.is_view:
            if func is not _CONVOLVE:
                tensors = [t for t in tensors if _memory(t) not in self.weights]
            used = sum(t.numel() * t.element_size() for t in tensors)
            self.bytes = max(self.bytes, used * (self.convolution if func is _CONVOLVE else 1.0))
            self.made += sum(t.nbytes for t in tree_flatten(out)[0] if isinstance(t, Tensor))
        return out


def _memory(tensor: Tensor) -> int:
    """The address of a tensor's memory; 0 for one that has none of its own, such as a sparse one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided and type(tensor) in _PLAIN else 0


def bytes_per_tangent(runner: Runner, sample: Sample, *, linear: bool, run: Callable[[], object] | None = None) -> int:
    """Estimated workspace of one tangent, from the largest operator of one plain forward pass.

    ``run`` makes the pass, where one is made for another reason.
    """
    return bytes_of_pass(runner, sample, linear=linear, run=run)[0]


def bytes_of_pass(
    runner: Runner, sample: Sample, *, linear: bool, run: Callable[[], object] | None = None
) -> tuple[int, int]:
    """The same, and what all operators of that pass make, as a backward pass needs it."""
    convolution = _CONVOLUTION if runner.device.type == "cuda" else 1.0
    with _LargestOperator(convolution, runner.weights.in_place) as seen:
        if run is None:
            runner.outputs(sample, sample.x)
        else:
            run()
    return max(int((_SAFETY_LINEAR if linear else _SAFETY) * seen.bytes), 1), seen.made


def bytes_carried(point: AtPoint, device: torch.device) -> int:
    """The same of one tangent that is carried on a part of each map."""
    made, size = point.made, point.outputs[0].element_size()
    widest = made.widest * (_CONVOLUTION if device.type == "cuda" else 1.0)
    return max(int(_SAFETY_LINEAR * size * max(made.largest, widest)), 1)


def chunk_for(columns: int, per_tangent: int, budget: int, device: torch.device, *, limit: int | None = None) -> int:
    """Tangents a chunk, evenly spread over the columns.

    Raises
    ------
    DeviceError
        When not even one tangent fits.
    """
    if limit is None:
        limit = 256 if device.type == "cuda" else 32  # measured: past these a larger chunk is no faster
    fits = budget // per_tangent
    if fits < 1:
        raise DeviceError(
            f"the memory budget of {budget / 2**20:,.0f} MB is too small: one tangent needs about "
            f"{per_tangent / 2**20:,.0f} MB; raise {parameter('memory_budget')} or choose a smaller input"
        )
    chunk = min(int(fits), limit, columns)
    passes = -(-columns // chunk)
    return -(-columns // passes)
