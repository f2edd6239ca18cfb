"""What a network is made of, for the columns of Table 1 that the paper fills with words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

__all__ = ["activation", "main_block"]

_PLACE = nn.modules.activation.__name__
# what attention has inside, and the outputs of classifiers
_NOT_BETWEEN_LAYERS = {nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax}


def activation(model: nn.Module) -> str | None:
    """Class of the activation modules, the most frequent one; ``None`` where the activation is a function.

    >>> activation(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.GELU(), nn.ReLU()))
    'GELU'
    """
    known = {c for c in vars(nn.modules.activation).values() if isinstance(c, type) and c.__module__ == _PLACE}
    known -= _NOT_BETWEEN_LAYERS
    seen = Counter(
        kind.__name__
        for module in model.modules()
        if (kind := next((c for c in type(module).__mro__ if c in known), None))
    )
    return seen.most_common(1)[0][0] if seen else None


def main_block(model: nn.Module, names: Iterable[str]) -> str | None:
    """Class of the modules at the cut points, the most frequent of those that hold others; ``None`` without one.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()))
    >>> main_block(net, ["0", "1", "2"])
    'Sequential'
    """
    modules = dict(model.named_modules())
    seen = Counter(
        type(modules[name]).__name__
        for name in names
        if name in modules and any(True for _ in modules[name].children())
    )
    return seen.most_common(1)[0][0] if seen else None
