"""Whether numbers that come of a model's input decide what it computes: branches, loops, sizes, chosen rows.

Samples that share a pass of such a model share its branches too, so each has to be called alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["decides", "reads_values"]

_READ = torch.Tag.data_dependent_output  # ``item``, ``bool``, ``equal``
_PACKED = (torch.ops.aten._pack_padded_sequence.default, torch.ops.aten._pad_packed_sequence.default)
_SIZED = torch.Tag.dynamic_output_shape  # ``nonzero``, ``masked_select``, ``unique``


class _Follows(TorchDispatchMode):
    """Marks every tensor that comes of the input, by its storage, and sees where one of them is read."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.found = False
        self._marked = {x.untyped_storage()._cdata: x.untyped_storage()}  # held: a freed place would be given again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.found:
            return made
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor) and t.layout == torch.strided]
        of_input = [t for t in given if t.untyped_storage()._cdata in self._marked]
        if of_input:
            self.found = decides(func, of_input)
            written = given if func._schema.is_mutable else []
            # how many rows a step has comes of the lengths alone, and these of that
            by_lengths = func in _PACKED and len(args) > 1 and args[1].untyped_storage()._cdata not in self._marked
            of_values = made[:1] if by_lengths else made
            for tensor in [*tree_leaves(of_values), *written]:
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    self._marked[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return made


def decides(func: Any, of_input: list[Tensor]) -> bool:
    """Whether an operator of tensors that come of the input makes a number, or a size, of their values."""
    if _READ in func.tags:
        return True
    if _SIZED not in func.tags:
        return False
    # the shape of what integers index is theirs; Booleans choose as many rows as are true
    indexed = func is torch.ops.aten.index.Tensor
    return not indexed or any(t.dtype in (torch.bool, torch.uint8) for t in of_input)


def reads_values(x: Tensor, run: Callable[[Tensor], Any]) -> bool:
    """Whether ``run``, a forward pass with ``x``, reads a number that comes of ``x``. What fails reads nothing.

    >>> reads_values(torch.ones(1, 2), lambda x: x.sum() if x.sum() > 0 else -x)
    True
    >>> reads_values(torch.ones(1, 2), lambda x: torch.relu(x).sum())
    False
    """
    follows = _Follows(x)
    try:
        with follows:
            run(x)
    except Exception:  # what does not run under a dispatch mode; the measurement says what does not run at all
        return follows.found
    return follows.found
