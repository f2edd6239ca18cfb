"""A picture of everything that a measurement must leave as it was: the model, its inputs, the process."""

from __future__ import annotations

import random
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["difference", "picture"]


def picture(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """By name: tensors by identity, type and bytes, plain attributes by value, hooks, modes, flags, random states."""
    seen: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in vars(module).items():
            if key == "_modules":
                seen[f"{name}._modules"] = [(k, id(m)) for k, m in value.items()]
            else:
                seen[f"{name}.{key}"] = _frozen(value)
    seen["inputs"] = _frozen(inputs) if isinstance(inputs, Tensor | Mapping) else None
    seen["random: torch"] = bytes(torch.get_rng_state().numpy().tobytes())
    seen["random: numpy"] = repr(np.random.get_state())
    seen["random: python"] = random.getstate()
    backends = torch.backends
    seen["flags"] = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        backends.mha.get_fastpath_enabled(),
        backends.mkldnn.enabled,
        backends.cudnn.enabled,
        backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        *(getattr(backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "math", "mem_efficient", "cudnn")),
    )
    return seen


def _frozen(value: Any) -> Any:
    """A value that compares as the original does now, whatever happens to the original later."""
    if isinstance(value, Tensor):
        data = value.detach()
        grad = None if not value.is_leaf else _frozen(value.grad) if value.grad is not None else None
        raw = data.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
        return (id(value), type(value).__name__, value.dtype, tuple(value.shape), value.requires_grad, raw, grad)
    if isinstance(value, Mapping):
        return {repr(k): _frozen(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_frozen(v) for v in value]
    if isinstance(value, weakref.ref):  # recurrent layers keep references to their weights
        return ("reference", id(value()))
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype):
        return value
    return id(value)


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The names of what is not as it was; empty when all is."""
    changed = [k for k in before if k not in after or before[k] != after[k]]
    return ", ".join([*changed, *(f"new {k}" for k in after.keys() - before.keys())])
