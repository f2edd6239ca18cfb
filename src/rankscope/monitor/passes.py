"""An eager pass of a compiled model, whose code skips every hook that came later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from rankscope.slicing.guard import random_state
from rankscope.slicing.state import kept_state

__all__ = ["called_with", "eager_pass", "is_compiled"]


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or any of its modules was compiled: hooks that come later never fire there."""
    return any(
        isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )


@contextmanager
def called_with(model: nn.Module, look: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Inside, ``look`` gets the arguments of every call of the model, before the call."""
    compiled = model._compiled_call_impl
    if compiled is None:
        handle = model.register_forward_pre_hook(
            lambda _module, args, kwargs: look(args, kwargs), with_kwargs=True, prepend=True
        )
        try:
            yield
        finally:
            handle.remove()
        return

    def looked_at(*args: Any, **kwargs: Any) -> Any:
        look(args, kwargs)
        return compiled(*args, **kwargs)

    model._compiled_call_impl = looked_at
    try:
        yield
    finally:
        model._compiled_call_impl = compiled


def eager_pass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the plain module once on copies of the arguments; buffers, state and random numbers are put back.

    It is in the mode, and under the autocast, of the code that called.
    """
    copied_args, copied_kwargs = tree_map(
        lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else v, (args, kwargs)
    )
    parameter = next(iter(model.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    cached = torch.is_autocast_cache_enabled()
    in_place = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    # weights that autocast converts without gradients must not be kept for the pass that trains
    torch.set_autocast_cache_enabled(False)
    try:
        for module in in_place:
            module._compiled_call_impl = None
        with (
            kept_state(model),
            random_state(device),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            model(*copied_args, **copied_kwargs)
    finally:
        torch.set_autocast_cache_enabled(cached)
        for module, compiled in in_place.items():
            module._compiled_call_impl = compiled
