"""Whether torch alone derives what leads to the cut points, with no custom code: one pass in reverse mode shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankscope.linear.custom import any_operators

__all__ = ["ByTorch"]


class ByTorch(TorchFunctionMode):
    """Put it around a pass with gradients on, then ``see`` what that gave.

    ``alone`` is ``None`` before that; it is false where there is a hook on a gradient or a custom operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alone: bool | None = None
        self._hooked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._hooked |= func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)
        return func(*args, **(kwargs or {}))

    def see(self, outputs: Sequence[Tensor]) -> None:
        self.alone = not self._hooked and not any_operators(outputs)
