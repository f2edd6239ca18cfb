"""Where a derivative ends on its way through a model, for a message that names the module and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.slicing.capture import OUTPUT, CallKey, capture
from rankscope.slicing.grad_mode import StaysOn, recording_through
from rankscope.slicing.guard import measuring
from rankscope.slicing.members import every_member
from rankscope.slicing.mixing import mixing_before
from rankscope.slicing.sample import Sample, call_model

__all__ = ["derivative_ends", "failing_module", "unmoved"]

_LEAVES = {
    torch.Tensor.detach: ".detach()",
    torch.Tensor.detach_: ".detach_()",
    torch.Tensor.data.__get__: ".data",  # type: ignore[attr-defined]
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.item: ".item()",
    torch.Tensor.tolist: ".tolist()",
    torch.Tensor.__float__: "float(…)",
    torch.Tensor.__array__: "numpy's conversion",
}
_STEPS = {
    torch.Tensor.argmax: "argmax",
    torch.argmax: "argmax",
    torch.Tensor.argmin: "argmin",
    torch.argmin: "argmin",
    torch.Tensor.argsort: "argsort",
    torch.argsort: "argsort",
    torch.Tensor.long: "conversion to integers",
    torch.Tensor.int: "conversion to integers",
    torch.Tensor.bool: "conversion to booleans",
}


@dataclass
class _Seen:
    """One operation that passes no derivative on, in the module that was running, and the graph's node it was given."""

    module: str
    operation: str
    leaves: bool
    node: Any


class _Watch(StaysOn):
    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = [""]
        self.seen: list[_Seen] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = _LEAVES.get(func) or _STEPS.get(func)
        if operation and args and isinstance(args[0], Tensor) and args[0].grad_fn is not None:
            self.seen.append(_Seen(self.running[-1], operation, func in _LEAVES, args[0].grad_fn))
        return super().__torch_function__(func, types, args, kwargs)


@dataclass
class _Calls:
    """Of every module call, innermost first: the graph's nodes of what went in and of what came out."""

    made: list[tuple[str, list[Any], list[Any]]] = field(default_factory=list)


def derivative_ends(model: nn.Module, sample: Sample) -> str | None:
    """Where the input's derivative ends and what to do about it; ``None`` where nothing was found that ends it.

    The text goes before what follows from it: "remove .detach() from 'encoder' (Encoder)".
    """
    watch, calls = _Watch(), _Calls()
    with measuring(model, sample.x.device):
        x = sample.x.detach().clone()
        with torch.enable_grad(), recording_through(model, watch):
            leaf = x.requires_grad_()
            with _hooks(model, watch, calls):
                try:
                    made = call_model(model, sample, leaf * 1)
                except Exception:  # the model's own code; the caller has a reason to give without this one
                    return None
        calls.made.append(("", [leaf.grad_fn], _nodes([made])))
        nodes = [n for _, a, b in calls.made for n in (*a, *b)] + [s.node for s in watch.seen]
        live = mixing_before(nodes, leaf).some
    stopping = [
        name
        for name, given, returned in calls.made
        if (name == "" or any(n in live for n in given)) and not any(n in live for n in returned)
    ]
    seen = [s for s in watch.seen if s.node in live]
    inside = [s for s in seen if any(_within(s.module, name) for name in stopping if name)]
    for one in inside or seen:
        where = _where(model, one.module)
        if one.leaves:
            return f"remove {one.operation} from {where}"
        return f"choose cut points before the {one.operation} in {where}, which has no derivative"
    for name in (n for n in stopping if n):
        return f"choose cut points before {_where(model, name)}, whose output does not depend on its input"
    return None


def unmoved(model: nn.Module, sample: Sample, keys: Iterable[CallKey]) -> set[CallKey]:
    """Those calls that return the same values for other inputs, so that there is no derivative to miss."""
    wanted = list(keys)
    seen: list[dict[CallKey, list[Tensor]]] = []
    for x in (sample.x, torch.flip(sample.x, [-1]) + 1, -3 * sample.x, 10 * torch.sin(7 * sample.x + 1)):
        found: dict[CallKey, list[Tensor]] = {}

        def take(call: tuple[str, int], _: nn.Module, output: Any, found: dict[CallKey, list[Tensor]] = found) -> None:
            tensors = every_member(output)
            for key in wanted:
                if (key.module, key.call) == call:
                    found[key] = [t.clone() for p, t in tensors.items() if key.parts is None or p in key.parts]

        with measuring(model, sample.x.device), capture(model, {k.module for k in wanted if not k.of_network}, take):
            try:
                take((OUTPUT, -1), model, call_model(model, sample, x.clone()))
            except Exception:  # the model's own code refuses other values: nothing is known
                return set()
        seen.append(found)
    return {k for k in wanted if all(_equal(seen[0].get(k), other.get(k)) for other in seen[1:])}


def _equal(a: list[Tensor] | None, b: list[Tensor] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return False
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def failing_module(model: nn.Module, error: BaseException) -> str | None:
    """The innermost module in whose forward an error arose, with its class."""
    names = {id(module): name for name, module in model.named_modules()}
    found = None
    frames = error.__traceback__
    while frames is not None:
        owner = frames.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            found = names[id(owner)]
        frames = frames.tb_next
    return None if found is None else _where(model, found)


def _within(module: str, outer: str) -> bool:
    return module == outer or module.startswith(f"{outer}.")


def _where(model: nn.Module, name: str) -> str:
    if not name:
        return f"the forward of {type(model).__name__}"
    return f"{name!r} ({type(model.get_submodule(name)).__name__})"


def _nodes(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            found += [] if value.grad_fn is None else [value.grad_fn]
        elif isinstance(value, dict):
            found += _nodes(value.values())
        elif isinstance(value, list | tuple):
            found += _nodes(value)
    return found


@contextmanager
def _hooks(model: nn.Module, watch: _Watch, calls: _Calls) -> Iterator[None]:
    def enter(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            watch.running.append(name)

        return hook

    def leave(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            watch.running.pop()
            calls.made.append((name, _nodes([*args, *kwargs.values()]), _nodes([output])))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave(name), with_kwargs=True).remove)
        yield
