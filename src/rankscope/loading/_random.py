"""Random weights that repeat, leave the global random state alone, and do not switch residual branches off."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from rankscope._base.facts import Fact, FactKind

__all__ = ["open_branches", "seeded"]

# A layer scale that starts at this or less multiplies its branch by next to nothing; common values are 1e-6 to 1e-4.
_NEARLY_CLOSED = 1e-3
_KINDS = (FactKind.NORMS_OPENED, FactKind.WEIGHTS_DRAWN, FactKind.BRANCHES_CLOSED)  # in the order that they are said


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's CPU generators start from ``seed`` inside and go on as before after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs too, and those are not restored here
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@torch.no_grad()
def open_branches(model: nn.Module, *, seed: int) -> list[Fact]:
    """Replace weights that start at exactly zero, with one fact for each kind.

    Many networks start with the last norm of each residual branch, or the last linear layer, at zero: good for
    training, but the Jacobian of the branch, or of all logits, is then exactly zero. Norm scales become 1 (timm's
    ``zero_init_last=False``); weights of linear and convolution layers are drawn as PyTorch draws them by default.
    Layer scales and gains stay as they come; those at exactly zero, and those that all but close a branch, are counted.
    """
    counts: Counter[FactKind] = Counter()
    small: list[float] = []
    with seeded(seed):
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.numel():
                    continue
                if parameter.any():
                    small += _nearly_closed(parameter)
                elif (kind := _opened(module, name, parameter)) is not None:
                    counts[kind] += 1
    found = [Fact(kind, {"count": counts[kind]}) for kind in _KINDS if counts[kind]]
    if small:
        found.append(Fact(FactKind.BRANCHES_NEARLY_CLOSED, {"count": len(small), "largest": max(small)}))
    return found


def _nearly_closed(parameter: nn.Parameter) -> list[float]:
    """The one value of a parameter that all but closes a branch; nothing of any other."""
    first = parameter.flatten()[0]
    closes = parameter.numel() > 1 and 0 < abs(float(first)) <= _NEARLY_CLOSED
    return [abs(float(first))] if closes and bool((parameter == first).all()) else []


def _opened(module: nn.Module, name: str, parameter: nn.Parameter) -> FactKind | None:
    """What a parameter that is zero is, or has become."""
    # a layer scale is a bare parameter of its block; only true norms carry a `weight` and a norm's name
    if name == "weight" and parameter.ndim == 1 and "norm" in type(module).__name__.lower():
        parameter.fill_(1)
        return FactKind.NORMS_OPENED
    if name == "weight" and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        return FactKind.WEIGHTS_DRAWN
    if any(word in name for word in ("gain", "gamma", "scale", "alpha")):
        return FactKind.BRANCHES_CLOSED
    return None
