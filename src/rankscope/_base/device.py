"""From a device's name to a device that is really there."""

from __future__ import annotations

import torch

from rankscope._base.errors import DeviceError, UsageError

__all__ = ["resolve_device"]


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device called ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or with ``"auto"`` the first GPU, else the CPU.

    ``"auto"`` never takes MPS: it has no float64, which the Gram matrices need. Raises ``UsageError`` for a name that
    is none, ``DeviceError`` for a device that is absent.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    text = str(name).strip().lower()
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {str(name)!r} is unknown; use 'cpu', 'cuda', 'cuda:1', 'mps' or 'auto'")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(f"device {text!r} was asked for, but {_present(count)}; use --device {_remedy(count)}")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device 'mps' was asked for, but this machine or this torch ({torch.__version__}) has none")
    return device


def _present(count: int) -> str:
    if count:
        return f"torch {torch.__version__} sees {count} CUDA device{'s' if count > 1 else ''} (cuda:0–cuda:{count - 1})"
    built = "was built without CUDA" if torch.version.cuda is None else "finds no usable NVIDIA GPU or driver"
    return f"torch {torch.__version__} {built}"


def _remedy(count: int) -> str:
    return "cuda:0" if count else "cpu, or install a CUDA build of torch on a machine with an NVIDIA GPU"
