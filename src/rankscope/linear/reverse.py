"""Reverse mode with correct batch normalisation.

On the CPU torch's backward kernel of BatchNorm in evaluation mode silently gives wrong numbers for a single image whose
gradient is laid out channels-last, as a transpose after the normalisation makes it: off by the size of the gradient
itself in LeViT, EfficientFormer and LambdaNetworks (torch 2.13). With a gradient in plain layout the kernel is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["reverse_mode"]


class _PlainGradients(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_batch_norm_backward.default:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def reverse_mode(device: torch.device | None = None) -> Iterator[None]:
    """Gradients are recorded inside, and what ``torch.autograd.grad`` gives is right.

    On a GPU the kernel is right as it is, and looking at every operator would cost more than the pass.
    """
    with torch.enable_grad(), nullcontext() if device is not None and device.type != "cpu" else _PlainGradients():
        yield
