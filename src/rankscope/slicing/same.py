"""Whether tensors are what they were: by their version counters, by where their numbers are, and by the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["on_a_gpu", "same_at_once", "same_memory", "same_numbers", "version_of"]

_AT_ONCE = 2**26  # bytes of tensors that are compared as one


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to, as torch counts; tensors of inference mode are not counted."""
    return 0 if tensor.is_inference() else tensor._version


def same_memory(tensor: Tensor, data: Tensor) -> bool:
    """Whether two tensors of one form hold their numbers in one place."""
    if tensor is data:
        return True
    if tensor.shape != data.shape or tensor.dtype != data.dtype or tensor.layout != data.layout:
        return False
    return tensor.layout != torch.strided or tensor.data_ptr() == data.data_ptr()


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """The same bits as far as a comparison sees them; NaN equals NaN."""
    if a.layout != torch.strided or a.is_quantized:
        return a.is_quantized or same_numbers(*(t.to_dense() for t in (a, b)))
    if a.is_meta:  # the form of a network whose weights are given to every call: it holds no numbers
        return a.shape == b.shape
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def same_at_once(pairs: Iterable[tuple[Tensor, Tensor | None]]) -> list[bool]:
    """For which pairs one comparison of many shows the same numbers; of the others nothing is known.

    To compare tensors of a GPU one by one is to wait for it as often, a thousand times in a first image; those of a
    processor are compared as fast one by one.
    """
    found: list[bool] = []
    together: dict[Any, list[tuple[int, Tensor, Tensor]]] = {}
    sizes: dict[Any, int] = {}

    def compare(kind: Any) -> None:
        places, left, right = zip(*together.pop(kind), strict=True)
        if torch.equal(*(torch.cat([t.reshape(-1) for t in tensors]) for tensors in (left, right))):
            for place in places:
                found[place] = True
        sizes.pop(kind)

    for place, (a, b) in enumerate(pairs):
        found.append(False)
        if b is None or not (on_a_gpu(a) and on_a_gpu(b)) or a.shape != b.shape:
            continue
        if a.dtype != b.dtype or a.device != b.device:
            continue
        kind, size = (a.device, a.dtype), a.numel() * a.element_size()
        if size > _AT_ONCE:  # a copy of it would cost more than to wait
            continue
        if sizes.get(kind, 0) + size > _AT_ONCE:
            compare(kind)
        together.setdefault(kind, []).append((place, a, b))
        sizes[kind] = sizes.get(kind, 0) + size
    for kind in list(together):
        compare(kind)
    return found


def on_a_gpu(tensor: Tensor) -> bool:
    """Whether to look at its numbers is to wait for a device."""
    return tensor.is_cuda and tensor.layout == torch.strided and not tensor.is_quantized
