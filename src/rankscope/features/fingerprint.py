"""What a collection belongs to: the model, the data and the settings, each as one line of text."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from rankscope._base.identity import Identity, identity_of

__all__ = ["data_fingerprint", "data_identity", "model_fingerprint", "setting_fingerprint"]


def model_fingerprint(model: nn.Module) -> str:
    """Class and digest of every parameter and buffer, of plain attributes, and of the code.

    >>> model_fingerprint(nn.Linear(2, 2)) == model_fingerprint(nn.Linear(2, 2))
    False
    """
    return f"{type(model).__name__} {identity_of(model).key}"


def setting_fingerprint(**settings: Any) -> str:
    """The settings themselves, readable.

    >>> setting_fingerprint(reduce="pool", cut_points=["a"])
    '{"cut_points": ["a"], "reduce": "pool"}'
    """
    return json.dumps(settings, sort_keys=True)


def data_identity(dataset: Any, collate: Any = None) -> Identity:
    """Identity of all that a data set holds and does: labels, values, transforms, and the content of the files that it
    lists; and of the function that makes batches of it.
    """
    return identity_of(dataset, collate, files=True)


def data_fingerprint(dataset: Any, collate: Any = None) -> str:
    """Kind, length and digest."""
    return f"{type(dataset).__name__} of {len(dataset)} {data_identity(dataset, collate).key}"
