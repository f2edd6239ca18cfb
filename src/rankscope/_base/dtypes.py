"""The name of a dtype as results, facts and messages have it."""

from __future__ import annotations

import torch

__all__ = ["dtype_name"]


def dtype_name(dtype: torch.dtype) -> str:
    """The name without its module.

    >>> dtype_name(torch.float64)
    'float64'
    """
    return str(dtype).removeprefix("torch.")
