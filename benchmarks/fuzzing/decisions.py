"""Which linear piece a forward pass stands on: the outcome of every comparison, choice and kink that it meets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Decisions"]

_NEAR = 2e-6  # of the largest entry: here another order of float32 sums may fall to the other side
_FIXED = {
    "relu": (0.0,), "relu_": (0.0,), "leaky_relu": (0.0,), "leaky_relu_": (0.0,), "abs": (0.0,), "sign": (0.0,),
    "sgn": (0.0,), "_prelu_kernel": (0.0,), "elu": (0.0,), "elu_": (0.0,),
    "hardswish": (-3.0, 3.0), "hardsigmoid": (-3.0, 3.0), "round": (), "floor": (),
}  # fmt: skip
_BOUNDS = {"clamp", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardtanh_", "threshold"}
_SYMMETRIC = {"softshrink", "hardshrink"}
_PAIRS = {"maximum", "minimum", "gt", "ge", "lt", "le"}
_SUMS = {"sum", "mean"}  # what they give may be zero up to the rounding of what was added


class Decisions(TorchDispatchMode):
    """Records them below autograd, so it sees every operator however it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Tensor] = []
        self.near = False
        self._added: dict[int, tuple[Tensor, float]] = {}  # a sum by its storage, with the largest of what was added

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].numel():
            self._meet(name, args)
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.dtype in (torch.bool, torch.int64, torch.int32):
                self.taken.append(tensor.clone())
            elif not isinstance(tensor, Tensor) and isinstance(tensor, bool | int):
                self.taken.append(torch.tensor(tensor))
        if name in ("round", "floor"):
            self.taken.append(out.clone().double())
        if name in _SUMS and isinstance(out, Tensor) and out.is_floating_point() and args[0].numel():
            self._added[out.untyped_storage().data_ptr()] = (out, float(args[0].abs().max()))
        return out

    def _meet(self, name: str, args: Any) -> None:
        x = args[0]
        if name in _FIXED:
            for kink in _FIXED[name]:
                self._beside(x, kink)
        elif name in _SYMMETRIC:
            width = float(args[1]) if len(args) > 1 else 0.5
            self._beside(x, width)
            self._beside(x, -width)
        elif name in _BOUNDS or name in _PAIRS:
            for bound in args[1:3]:
                if bound is not None and not isinstance(bound, bool):
                    self._beside(x, bound)
        elif name == "_local_scalar_dense":  # a number that Python compares, nearly always with zero
            self._beside(x, 0.0)

    def _beside(self, x: Tensor, kink: Any) -> None:
        gap = x - kink
        self.taken.append(gap > 0)
        largest = torch.as_tensor(x.abs().max().clamp_min(torch.as_tensor(kink, dtype=x.dtype).abs().max()))
        _, added = self._added.get(x.untyped_storage().data_ptr(), (x, 0.0))
        self.near |= bool(((gap != 0) & (gap.abs() <= _NEAR * largest.clamp_min(added))).any())

    def same_as(self, other: Decisions) -> bool:
        """Whether both stand on one piece, with every value clear of the next."""
        if self.near or other.near or len(self.taken) != len(other.taken):
            return False
        return all(torch.equal(a, b) for a, b in zip(self.taken, other.taken, strict=True))
