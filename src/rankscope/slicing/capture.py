"""Record what named modules return during one forward pass. Hooks live only inside the context manager.

Captures are keyed by (module, call index), because a module may be called several times in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["CallKey", "Capture", "capture", "first_tensor"]

CallKey = tuple[str, int]


def first_tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor in a module's output, searched in tuples, lists, mappings and records.

    >>> import torch
    >>> first_tensor((torch.tensor([1]), torch.tensor([2.0])))
    tensor([2.])
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        members: Iterable[Any] = output.values()
    elif isinstance(output, list | tuple):
        members = output
    else:
        members = vars(output).values() if hasattr(output, "__dataclass_fields__") else ()
    for member in members:
        found = first_tensor(member)
        if found is not None:
            return found
    return None


@dataclass
class Capture:
    """What one forward pass left behind: outputs by key, in the order in which the modules returned."""

    outputs: dict[CallKey, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def clear(self) -> None:
        self.outputs.clear()
        self.counts.clear()


@contextmanager
def capture(
    model: nn.Module,
    names: Iterable[str] | None,
    take: Callable[[CallKey, nn.Module, Tensor], Any],
) -> Iterator[Capture]:
    """Hook the named modules (all, for ``None``); ``take`` turns each output tensor into what is kept.

    ``take`` must copy what it keeps: a later in-place operation would change it. It may return ``None`` to keep
    nothing. Call ``clear()`` on the yielded ``Capture`` before each forward pass. Every hook is removed on exit, also
    after an exception.
    """
    record = Capture()
    wanted = None if names is None else set(names)

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            index = record.counts.get(name, 0)
            record.counts[name] = index + 1
            tensor = first_tensor(output)
            if tensor is None:
                return
            kept = take((name, index), module, tensor)
            if kept is not None:
                record.outputs[(name, index)] = kept

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            if name and (wanted is None or name in wanted):
                handles.append(module.register_forward_hook(hook_for(name)))
        yield record
    finally:
        for handle in handles:
            handle.remove()
        record.clear()
