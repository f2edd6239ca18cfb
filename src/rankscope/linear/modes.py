"""Whether forward and reverse mode must agree on an image, without a reverse pass of it.

The two modes of one torch operator come from one formula, or from two that are each other's transpose at every value,
except exactly at the kinks of a few; the registry says which. A network that consists of such operators alone then has
one derivative, and a reverse pass would show nothing but rounding. What torch does not derive itself (an
``autograd.Function``, a hook on a gradient, an operator of a library) can be wrong on one image alone: nothing is
concluded of it.
"""

from __future__ import annotations

import torch

from rankscope.linear.by_torch import ByTorch
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


def derived_by_torch(runner: Runner, method: Method, sample: Sample) -> bool:
    """Whether torch alone derives what leads to the cut points: no custom operator, no hook. Hooks of a runner on."""
    watch = ByTorch()
    try:
        with method.kernels(), reverse_mode(sample.x.device), watch:
            x = sample.x.detach().clone().requires_grad_()
            outputs = runner.outputs(sample, x * 1)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model's own code may raise anything here; the reverse pass of each image says what it is
        return False
    watch.see(outputs)
    return bool(watch.alone)
