"""Modules that a function given by a user can call: they leave a measurement as they came."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from rankscope.slicing.state import kept_state

__all__ = ["left_as_they_are", "modules_of"]

_MOST = 10_000  # values looked at; what a function reaches beyond that is a data set


def modules_of(function: Any) -> list[nn.Module]:
    """Modules among what a function closes over, names, is bound to or was given as arguments.

    >>> head = nn.Linear(2, 2)
    >>> modules_of(lambda rows: head(rows)) == modules_of(head.forward) == modules_of(partial(head, 1)) == [head]
    True
    """
    found: list[nn.Module] = []
    seen: dict[int, Any] = {}  # holds each value, so that no other gets its identity
    queue: deque[Any] = deque([function])
    while queue and len(seen) < _MOST:
        value = queue.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        try:
            if isinstance(value, nn.Module):
                found.append(value)
            else:
                queue.extend(_reached(value))
        except Exception:  # closed files, lazy proxies: whatever others' code raises when looked at, the call may not
            continue
    return found


def _reached(value: Any) -> Iterator[Any]:
    """What one value leads to directly."""
    if isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        if value.__module__ == "torch" or (value.__module__ or "").startswith("torch."):
            return
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from (value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__)
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set):
        yield from value
    elif not isinstance(value, type | types.ModuleType | torch.Tensor) and isinstance(
        getattr(value, "__dict__", None), dict
    ):
        yield from vars(value).values()


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that a function and the functions within it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is not bound yet
        return False
    return True


@contextmanager
def left_as_they_are(function: Any) -> Iterator[None]:
    """The state of the modules that a function calls is put back at the end: buffers, counters, caches, modes.

    Not before each call, as a model's own: a function may mean what it changes, as ``head.eval()`` before ``head(x)``.
    """
    with ExitStack() as stack:
        for module in [] if isinstance(function, nn.Module) else modules_of(function):
            state = stack.enter_context(kept_state(module))
            stack.enter_context(state.paused())
        yield
