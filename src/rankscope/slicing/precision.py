"""Whether a model that was asked for float64 works in less than that inside."""

from __future__ import annotations

from typing import Any

from torch import Tensor, float64
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LowerPrecision"]


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
