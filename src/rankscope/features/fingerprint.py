"""What a collection belongs to: digests of the model, the data and the settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["data_fingerprint", "model_fingerprint", "setting_fingerprint"]

_WHOLE = 1 << 18  # bytes of a tensor that are all hashed
_SUMMED = 1 << 28
_PIECES, _PIECE = 256, 256  # pieces of a larger one at least, and entries in each
_PROBES = 4  # samples of a data set without file names that are read for its digest


def _digest(*parts: Any) -> str:
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, torch.Tensor):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            total.update(_sampled(part.detach()))
        else:
            total.update(str(part).encode())
        total.update(b"\0")
    return total.hexdigest()


def _sampled(value: torch.Tensor) -> bytes:
    """All bytes of a small tensor; of a large one its sum as integers and pieces spread evenly over it.

    The sum runs at the speed of memory and sees any single change; beyond ``_SUMMED`` bytes, where even that would show
    beside a forward pass, pieces of at least every 4 MB are what is looked at.
    """
    size = value.numel() * value.element_size()
    if not size:
        return b""
    if size <= _WHOLE:
        return bytes(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    flat = value.contiguous().reshape(-1)
    whole = b""
    if size <= _SUMMED:
        kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        integers = flat.view(kinds.get(value.element_size(), torch.uint8))
        whole = str(int(integers.sum(dtype=torch.int64))).encode()
    pieces = max(_PIECES, -(-size // 4_000_000))
    starts = torch.linspace(0, len(flat) - _PIECE, pieces, dtype=torch.float64).long()
    index = (starts[:, None] + torch.arange(_PIECE)).to(flat.device)
    return whole + bytes(flat[index].cpu().reshape(-1).view(torch.uint8).numpy().data)


def model_fingerprint(model: nn.Module) -> str:
    """Class and digest of every parameter and buffer.

    >>> model_fingerprint(nn.Linear(2, 2)) == model_fingerprint(nn.Linear(2, 2))
    False
    """
    state = model.state_dict()
    parts = [part for name, value in state.items() for part in (name, value) if isinstance(value, torch.Tensor)]
    return f"{type(model).__name__} {_digest(str(model), *parts)}"


def setting_fingerprint(**settings: Any) -> str:
    """The settings themselves, readable.

    >>> setting_fingerprint(reduce="pool", cut_points=["a"])
    '{"cut_points": ["a"], "reduce": "pool"}'
    """
    return json.dumps(settings, sort_keys=True)


def data_fingerprint(dataset: Any) -> str:
    """Kind, length and digest: of file names and labels where the data set lists them (``samples``), of the values of
    arrays (in pieces where they are large), and of a few samples otherwise (left out where reading them twice differs,
    as with augmentation).
    """
    kind, length = type(dataset).__name__, len(dataset)
    transform = repr(getattr(dataset, "transform", None))
    listed = getattr(dataset, "samples", None)
    if isinstance(listed, list):
        return f"{kind} of {length} {_digest(transform, *listed)}"
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, tuple):
        return f"{kind} of {length} {_digest(*tensors)}"
    picks = sorted({round(i * (length - 1) / (_PROBES - 1)) for i in range(_PROBES)}) if length else []
    parts = []
    for i in picks:
        try:
            first, again = (_digest(*_leaves(dataset[i])) for _ in range(2))
        except Exception as error:  # an unreadable sample is met, named and skipped later
            first = again = type(error).__name__
        parts.append(first if first == again else "varies")
    return f"{kind} of {length} {_digest(transform, *parts)}"


def _leaves(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [leaf for key in sorted(item) for leaf in (key, *_leaves(item[key]))]
    if isinstance(item, tuple | list):
        return [leaf for value in item for leaf in _leaves(value)]
    if hasattr(item, "__array_interface__"):  # arrays, and pictures, whose text would be their place in memory
        item = np.array(item)
    return [torch.from_numpy(item) if isinstance(item, np.ndarray) and item.dtype != object else item]
