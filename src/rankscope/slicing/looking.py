"""Forward hooks that only look: a module with them computes what it computes without."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["LooksOnly", "changing_hooks"]


class LooksOnly:
    """What a forward hook is that changes neither arguments nor outputs. A monitor's are of this kind."""


def changing_hooks(module: nn.Module) -> list[Any]:
    """The module's own forward hooks that may change what it gives.

    >>> class Look(LooksOnly):
    ...     def __call__(self, module, args, output): ...
    >>> net = nn.Linear(2, 2)
    >>> _ = net.register_forward_hook(Look())
    >>> changing_hooks(net)
    []
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [hook for hook in hooks if not isinstance(hook, LooksOnly)]
