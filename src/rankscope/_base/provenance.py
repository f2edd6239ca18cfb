"""Where a result comes from: versions of what computed it and the device it ran on."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib import metadata

import torch

from rankscope._base.text import counted

__all__ = ["device_name", "versions"]

_PACKAGES = ("rankscope", "torch", "numpy", "scipy", "timm", "torchvision", "transformers")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part in a measurement.

    >>> versions()["torch"][0].isdigit()
    True
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device | str) -> str:
    """The device in words a reader recognises: the GPU's name, or ``cpu`` with its thread count."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({counted(torch.get_num_threads(), 'thread')})"
