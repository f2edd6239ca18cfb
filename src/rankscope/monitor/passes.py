"""The calls of a model in a monitored step: where each begins and ends, and an eager pass where hooks cannot fire."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from rankscope.slicing.guard import random_state
from rankscope.slicing.looking import LooksOnly
from rankscope.slicing.state import kept_state
from rankscope.slicing.wrapped import called_directly

__all__ = ["Hook", "around_calls", "eager_pass", "hides_hooks", "recomputes"]

Enter = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class Hook(LooksOnly):
    """A hook of one module. Copies of the module, and files that it is saved in, get one that does nothing.

    A replica of ``DataParallel`` shares its hooks with the module; there it does nothing either.
    """

    def __init__(self, module: nn.Module, act: Callable[..., None]) -> None:
        self._module, self._act = module, act

    def __call__(self, module: nn.Module, *given: Any) -> None:
        if module is self._module and not recomputes():
            self._act(module, *given)

    def __reduce__(self) -> tuple[Any, ...]:
        # takes anything and returns None, and can be read back without this package
        return getattr, (contextlib.nullcontext(), "__exit__")


def recomputes() -> bool:
    """Whether this runs inside a backward pass, as the recomputation of gradient checkpointing does."""
    return bool(torch._C._current_graph_task_id() != -1)


def hides_hooks(model: nn.Module) -> bool:
    """Whether hooks on the modules inside do not fire: compiled code skips them, and so do replicas."""
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        return True
    return any(
        isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )


class _Watched:
    """In place of the compiled code of a module that was compiled in place: shows each call to those who asked."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self.compiled, self.looks = compiled, list[Callable[[tuple[Any, ...], dict[str, Any]], None]]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for look in tuple(self.looks):
            look(args, kwargs)
        return self.compiled(*args, **kwargs)


@contextmanager
def around_calls(module: nn.Module, enter: Enter, leave: Callable[[bool], None]) -> Iterator[Callable[[], None]]:
    """Inside, ``enter`` gets the arguments of every call of the module before it, and ``leave`` whether it failed.

    It yields what puts ``leave`` behind the hooks that the module has by then. Where the module itself was compiled in
    place there is no ``leave``.
    """
    handled: list[BaseException | None] = []  # what was being handled when each call began

    def entered(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handled.append(sys.exception())
        enter(called, args, kwargs)

    def left(*_: Any) -> None:
        if handled:
            leave(handled.pop() is not sys.exception())

    if module._compiled_call_impl is not None:
        if not isinstance(module._compiled_call_impl, _Watched):
            module._compiled_call_impl = _Watched(module._compiled_call_impl)
        watched = module._compiled_call_impl

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            enter(module, args, kwargs)

        watched.looks.append(look)
        try:
            yield lambda: None
        finally:
            watched.looks.remove(look)
            if not watched.looks and module._compiled_call_impl is watched:
                module._compiled_call_impl = watched.compiled
        return
    before = module.register_forward_pre_hook(Hook(module, entered), with_kwargs=True, prepend=True)
    after = module.register_forward_hook(Hook(module, left), always_call=True)
    hooks: Any = module._forward_hooks  # an OrderedDict
    try:
        yield lambda: hooks.move_to_end(after.id)
    finally:
        before.remove()
        after.remove()


def eager_pass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the plain module once on copies of the arguments; buffers, state and random numbers are put back.

    It is in the mode, and under the autocast, of the code that called.
    """
    parameter = next(iter(model.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    copied_args, copied_kwargs = tree_map(
        lambda v: v.detach().to(device, copy=True) if isinstance(v, torch.Tensor) else v, (args, kwargs)
    )
    cached = torch.is_autocast_cache_enabled()
    # weights that autocast converts without gradients must not be kept for the pass that trains
    torch.set_autocast_cache_enabled(False)
    try:
        with (
            called_directly(model),
            kept_state(model),
            random_state(device),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            model(*copied_args, **copied_kwargs)
    finally:
        torch.set_autocast_cache_enabled(cached)
