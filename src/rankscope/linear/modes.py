"""Whether forward and reverse mode must agree on an image, without a reverse pass of it.

The two modes of one torch operator come from one formula, or from two that are each other's transpose at every value,
except exactly at the kinks of a few; the registry says which. A network that consists of such operators alone then has
one derivative, and a reverse pass would show nothing but rounding. What torch does not derive itself (an
``autograd.Function``, a hook on a gradient, an operator of a library) can be wrong on one image alone: nothing is
concluded of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankscope.linear.custom import custom_operators
from rankscope.linear.methods import Method
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.rules import RULES
from rankscope.linear.runner import Runner
from rankscope.linear.traced import TracedNetwork
from rankscope.slicing import Sample

__all__ = ["derived_by_torch", "unknown_operators"]


def unknown_operators(network: TracedNetwork) -> tuple[str, ...]:
    """The operators of a trace of whose two modes nothing is known."""
    calls = [n for n in network.nodes if n.op == "call_function" and n.name in network.depends]
    known = {n.target for n in calls if n.target in RULES and RULES[n.target].alike}
    return tuple(dict.fromkeys(str(n.target) for n in calls if n.target not in known))


class _Hooks(TorchFunctionMode):
    """Whether the code that runs inside hooks a gradient."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)
        return func(*args, **(kwargs or {}))


def derived_by_torch(runner: Runner, method: Method, sample: Sample) -> bool:
    """Whether torch alone derives what leads to the cut points: no custom operator, no hook. Hooks of a runner on."""
    hooks = _Hooks()
    try:
        with method.kernels(), reverse_mode(sample.x.device), hooks:
            x = sample.x.detach().clone().requires_grad_()
            outputs = runner.outputs(sample, x * 1)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model's own code may raise anything here; the reverse pass of each image says what it is
        return False
    return not hooks.found and not any(custom_operators(outputs))
