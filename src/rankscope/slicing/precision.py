"""Models in less than float32 raised to it, and whether one that was asked for float64 works in less inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, bfloat16, float16, float32, float64, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["NARROW", "LowerPrecision", "widened"]

NARROW = (float16, bfloat16)


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Inside, what the model holds in half precision is float32; afterwards every tensor has its own memory again.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2).bfloat16()
    >>> with widened(layer):
    ...     print(layer(torch.ones(1, 2)).dtype)
    torch.float32
    >>> layer.weight.dtype
    torch.bfloat16
    """
    held: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and tensor.dtype in NARROW and not tensor.is_inference():
                held.setdefault(id(tensor), (tensor, tensor.data))
    try:
        for tensor, data in held.values():
            tensor.data = data.to(float32)
        yield
    finally:
        for tensor, data in held.values():
            tensor.data = data


class LowerPrecision(TorchDispatchMode):
    """Inside, ``found`` becomes true when an operator makes a narrower floating tensor of a float64 one.

    Constants that are born narrow (a mask, an epsilon) do not count: they lose nothing of what is computed.

    >>> import torch
    >>> with LowerPrecision() as seen:
    ...     _ = torch.ones(3, dtype=torch.float64).float() * 2
    >>> seen.found
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        wide = any(isinstance(t, Tensor) and t.dtype == float64 for t in tree_leaves((args, kwargs)))
        if wide and any(isinstance(t, Tensor) and t.is_floating_point() and t.dtype != float64 and t.numel() > 1
                        for t in tree_leaves(out)):  # fmt: skip
            self.found = True
        return out
