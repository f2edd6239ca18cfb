"""Wrappers around a network that change where or how it runs, and not what it computes: they are taken off."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rankscope._base.checks import module_of
from rankscope._base.facts import Fact, FactKind
from rankscope.slicing.looking import changing_hooks

__all__ = ["called_directly", "unwrapped", "wrapped_by"]

_Names = TypeVar("_Names")


def unwrapped(model: Any, cut_points: _Names) -> tuple[nn.Module, _Names, list[Fact]]:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``, and what to say of it.

    ``cut_points`` may have the names of the wrapped model (``module.fc``); they come back as the network's own. A
    subclass with a ``forward`` of its own, and a wrapper with hooks that may change its output, compute something else
    and stay.

    Raises
    ------
    UsageError
        For what is no module.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> found, names, facts = unwrapped(nn.DataParallel(net), ["module.0", "output"])
    >>> found is net, names, facts[0]["wrappers"]
    (True, ['0', 'output'], ('DataParallel',))
    """
    found, prefix, wrappers = module_of(model), "", []
    while (inner := wrapped_by(found)) is not None:
        wrappers.append(type(found).__name__)
        attribute, found = inner
        prefix += f"{attribute}."
    facts = [Fact(FactKind.UNWRAPPED, {"wrappers": tuple(wrappers)})] if wrappers else []
    nested = {name: type(module).__name__ for name, module in found.named_modules() if name and _inside(module)}
    if nested:
        kinds = tuple(dict.fromkeys(nested.values()))
        facts.append(Fact(FactKind.PASSED_THROUGH, {"wrappers": kinds, "inside": tuple(nested)}))
    return found, _own(cut_points, prefix, found) if wrappers else cut_points, facts


def wrapped_by(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The attribute of a wrapper that holds the network, and the network; ``None`` for what is no such wrapper."""
    if changing_hooks(model) or model._backward_hooks or model._backward_pre_hooks:
        return None
    return _inside(model)


def _inside(model: nn.Module) -> tuple[str, nn.Module] | None:
    for kind in (nn.DataParallel, DistributedDataParallel):
        if isinstance(model, kind) and type(model).forward is kind.forward and isinstance(model.module, nn.Module):
            return "module", model.module
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")  # where it was not imported nothing was compiled
    if compiler is not None and isinstance(model, compiler.OptimizedModule):
        inner = model._orig_mod
        return ("_orig_mod", inner) if isinstance(inner, nn.Module) else None
    return None


@contextmanager
def called_directly(model: nn.Module) -> Iterator[None]:
    """Wrappers anywhere in the model call the module inside them, where it is, and nothing that is compiled runs.

    ``DataParallel`` would run on every GPU whatever device is measured on, ``DistributedDataParallel`` wait for other
    processes, and compiled code see neither hooks nor tangents. Hooks of the wrapper stay in force.
    """
    changed: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            own, inner = vars(module), _inside(module)
            if inner is not None and not isinstance(own.get("forward"), _Direct):
                changed.append((own, "forward", own.get("forward", _ABSENT)))
                own["forward"] = _Direct(inner[1])
            if own.get("_compiled_call_impl") is not None:  # module.compile()
                changed.append((own, "_compiled_call_impl", own["_compiled_call_impl"]))
                own["_compiled_call_impl"] = None
        yield
    finally:
        for own, name, value in changed:
            if value is _ABSENT:
                own.pop(name, None)
            else:
                own[name] = value


_ABSENT = object()


class _Direct:
    """The ``forward`` of a wrapper: the module inside."""

    __slots__ = ("module",)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _own(cut_points: Any, prefix: str, model: nn.Module) -> Any:
    """Names of the wrapped model as those of the network; a name that the network has itself stays."""
    children = {name for name, _ in model.named_children()}

    def own(name: Any) -> Any:
        ambiguous = not isinstance(name, str) or name.split(".")[0] in children
        return name if ambiguous else name.removeprefix(prefix)

    if isinstance(cut_points, str):
        return own(cut_points)
    several = isinstance(cut_points, list | tuple | set | frozenset) and isinstance(cut_points, Iterable)
    return [own(name) for name in cut_points] if several else cut_points
