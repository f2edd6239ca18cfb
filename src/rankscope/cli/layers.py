"""``rankscope layers``: what can be measured in a model."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

__all__ = ["print_layers"]


def print_layers(
    model: str, *, weights: str, weights_key: str | None, seed: int, num_classes: int | None, as_json: bool
) -> None:
    """Print the table of a model's cut points, or its JSON."""
    from rankscope.loading import load_model
    from rankscope.slicing import layers

    # a user's file, or a package, may print while it builds the model; standard output belongs to the result
    with contextlib.redirect_stdout(sys.stderr):
        loaded = load_model(model, weights=weights, weights_key=weights_key, seed=seed, num_classes=num_classes)
        table = layers(loaded.model, _example(loaded.input_size))
    if as_json:
        print(json.dumps({**table.to_dict(), "model": loaded.name, "default": list(table.default)}, indent=1))
    else:
        print(f"{loaded.name}, one forward pass on noise")
        print(table)


def _example(size: tuple[int, int, int] | None) -> Any:
    if size is None:
        return None
    import torch

    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
