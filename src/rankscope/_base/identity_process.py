"""What the process adds to an answer beside model and data: the dtype of plain numbers, casts, hooks of modules."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from rankscope._base.dtypes import dtype_name
from rankscope._base.identity import identity_of
from rankscope._base.identity_objects import HOOKS

__all__ = ["process_state"]

_HOOKS = [f"_global{name}" for name in HOOKS]
_SUBNORMAL = 5e-324


def process_state() -> dict[str, str]:
    """Settings under which the same model may compute other numbers than usual, by name; usual ones are left out.

    Devices, threads and the precision of products do not enter: what they change is rounding.

    >>> process_state()
    {}
    >>> torch.set_default_dtype(torch.float64)
    >>> process_state()
    {'default dtype': 'float64'}
    >>> torch.set_default_dtype(torch.float32)
    """
    found = {}
    if torch.get_default_dtype() != torch.float32:
        found["default dtype"] = dtype_name(torch.get_default_dtype())
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            found[f"autocast on {device}"] = dtype_name(torch.get_autocast_dtype(device))
    if not float(torch.tensor(_SUBNORMAL, dtype=torch.float64) * 1.0):
        found["subnormal numbers"] = "zero"
    hooks = {name: list(made.values()) for name in _HOOKS if (made := getattr(modules, name, None))}
    if hooks:
        found["hooks of every module"] = identity_of(hooks).key
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    changing = [mode for mode in modes if not _is_of_device(mode)]
    if changing:
        found["modes"] = identity_of(changing).key
    return found


def _is_of_device(mode: Any) -> bool:
    """Whether a mode only says where tensors are made."""
    device = sys.modules.get("torch.utils._device")
    return device is not None and isinstance(mode, device.DeviceContext)
