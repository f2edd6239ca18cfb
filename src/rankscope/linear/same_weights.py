"""Whether a model is still the one that a derivative was taken of: weights, buffers and plain attributes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankscope._base.errors import UsageError
from rankscope.slicing import version_of
from rankscope.slicing.fingerprints import fingerprint

__all__ = ["SameWeights"]

_LARGE = 2**30  # bytes of tensors; beyond this fingerprints are kept in place of copies
_PLAIN = (bool, int, float, complex, str, type(None))


class SameWeights:
    """Compares all values before every product: what is written through ``.data`` shows nowhere else."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        tensors = _tensors(model)
        small = sum(t.numel() * t.element_size() for t in tensors) <= _LARGE
        self._copies = [t.detach().clone() for t in tensors] if small else None
        self._marks = [] if small else [_mark(t) for t in tensors]
        self._plain = _plain(model)

    def check(self) -> None:
        """Raises ``UsageError`` where the model is another by now."""
        tensors = _tensors(self.model)
        if self._copies is None:
            same = self._marks == [_mark(t) for t in tensors]
        else:
            same = len(tensors) == len(self._copies) and all(map(_same, tensors, self._copies))
        if not same or self._plain != _plain(self.model):
            raise UsageError(
                f"{type(self.model).__name__} has changed since this Jacobian was taken: other weights, buffers or "
                "attributes; call linear_map again"
            )

    def renew(self) -> None:
        """A pass of ours may have moved version counters; what it changed was put back."""
        if self._copies is None:
            tensors = zip(_tensors(self.model), self._marks, strict=True)
            self._marks = [mark if isinstance(mark, _Print) else _stamp(t) for t, mark in tensors]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights, buffers and plain attributes of every module, in a fixed order."""
    return [
        tensor
        for module in model.modules()
        for held in (module._parameters, module._buffers, vars(module))
        for tensor in held.values()
        if isinstance(tensor, Tensor)
    ]


def _plain(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in vars(module).items() if k != "training" and isinstance(v, _PLAIN)}
        for module in model.modules()
    ]


def _same(tensor: Tensor, copy: Tensor) -> bool:
    if (tensor.shape, tensor.dtype, tensor.device, tensor.layout) != (
        copy.shape,
        copy.dtype,
        copy.device,
        copy.layout,
    ):
        return False
    if tensor.layout != torch.strided:
        return torch.equal(tensor.detach().to_dense(), copy.to_dense())
    return torch.equal(tensor, copy)


class _Print(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    bits: int


def _mark(tensor: Tensor) -> _Print | tuple[int, int, int]:
    """What a tensor holds, or, of what holds no plain numbers, where it is and how often it was written to."""
    bits = fingerprint(tensor)
    return _stamp(tensor) if bits is None else _Print(tensor.shape, tensor.dtype, tensor.device, int(bits))


def _stamp(tensor: Tensor) -> tuple[int, int, int]:
    address = tensor.data_ptr() if tensor.layout == torch.strided else 0
    return id(tensor), address, version_of(tensor)
