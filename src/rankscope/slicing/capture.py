"""Record what named modules return during one forward pass. Hooks live only inside the context manager.

Captures are keyed by (module, call index), because a module may be called several times in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from rankscope.slicing.members import Path

__all__ = ["OUTPUT", "CallKey", "Capture", "capture"]

OUTPUT = "output"


class CallKey(NamedTuple):
    """One call of one module, and which of the tensors that it returned; ``None``: all of them together.

    The network's own output has the name ``"output"`` and the index −1, which no module's call has.
    """

    module: str
    call: int = 0
    parts: tuple[Path, ...] | None = None

    @property
    def of_network(self) -> bool:
        return self.call < 0


@dataclass
class Capture:
    """What one forward pass left behind: outputs by (module, call), in the order in which the modules returned."""

    outputs: dict[tuple[str, int], Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def clear(self) -> None:
        self.outputs.clear()
        self.counts.clear()


@contextmanager
def capture(
    model: nn.Module,
    names: Iterable[str] | None,
    take: Callable[[tuple[str, int], nn.Module, Any], Any],
) -> Iterator[Capture]:
    """Hook the named modules (all, for ``None``); ``take`` turns what each returned into what is kept.

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
            kept = take((name, index), module, output)
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
