"""Whether a model does anything behind its last cut point.

A trace ends at the last cut point: it has shown that no value decides what is called up to there, and nothing of what
follows. Where nothing follows, every sample of its shape makes the same calls.
"""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rankscope.linear.runner import Runner
from rankscope.slicing import Sample, capture

__all__ = ["nothing_follows"]


class _Functions(TorchFunctionMode):
    """Whether a function of a tensor was called; this sees what reads values without an operator, as ``tolist``."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = True
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Whether an operator ran; this sees those of compiled code too."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = True
        return func(*args, **(kwargs or {}))


def nothing_follows(runner: Runner, sample: Sample) -> bool:
    """Whether one plain pass ends with the last of the runner's calls: no operator follows, and no value is read."""
    if any(key.of_network for key in runner.keys):
        return True
    waiting = {(key.module, key.call) for key in runner.keys}
    functions, operators = _Functions(), _Operators()

    def take(key: tuple[str, int], module: Any, output: Any) -> None:
        waiting.discard(key)
        if key in every:
            functions.seen = operators.seen = False

    def returns(module: Any, args: Any, output: Any) -> None:
        ended.append(not (functions.seen or operators.seen))

    every, ended = frozenset(waiting), list[bool]()
    handle = runner.model.register_forward_hook(returns)
    try:
        with capture(runner.model, {module for module, _ in every}, take), functions, operators:
            runner.returned(sample, sample.x)
    except Exception:  # the model's own code, or what does not run under these modes
        return False
    finally:
        handle.remove()
    return not waiting and ended == [True]
