"""Cut points that reverse mode has numbers for where forward mode has none.

Forward mode multiplies the zero tangent of √(relu(x)), x < 0, by the infinite derivative of the root, which gives NaN.
Reverse mode goes the other way round: relu drops whatever comes back from a unit that is off, so it gives the
derivative of the function, zero. What it gives is finite only where every path to the input that is not dropped has a
finite derivative, and then the chain rule holds: so the rule is to take it, one pass a row, wherever it is finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankscope.jacobian.sweep import SweepResult
from rankscope.linear.methods import MAX_REVERSE_ROWS, Method
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample

__all__ = ["by_reverse_mode", "few_enough", "not_finite"]


def not_finite(result: SweepResult) -> list[int]:
    """The cut points at which a sweep of one image met NaN or infinite numbers."""
    if not result.grams:
        return []
    finite = torch.stack([torch.isfinite(grams[0].diagonal()).all() for grams in result.grams])
    return [k for k, ok in enumerate(finite.tolist()) if not ok]


def by_reverse_mode(runner: Runner, method: Method, sample: Sample, places: Sequence[int]) -> list[int]:
    """Those of ``places`` whose outputs are finite, as are all their rows by reverse mode; ``runner`` is hooked.

    A random combination of the rows has a NaN or infinite entry where any row has one.
    """
    generator = torch.Generator().manual_seed(0xB0)
    found = []
    with method.kernels(), reverse_mode(sample.x.device):
        x = sample.x.detach().clone().requires_grad_()
        outputs = runner.outputs(sample, x * 1)
        for k in places:
            out = outputs[k]
            if not out.requires_grad or not bool(torch.isfinite(out).all()):
                continue
            weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
            (back,) = torch.autograd.grad(out, x, weights, retain_graph=True, materialize_grads=True)
            if bool(torch.isfinite(back).all()):
                found.append(k)
    return found


def few_enough(places: Sequence[int], rows: Sequence[int]) -> list[int]:
    """Those of ``places`` that can be measured row by row together, the ones of fewest rows first.

    >>> few_enough([0, 1, 2], [150_000, 30_000, 40_000])
    [1, 2]
    """
    chosen, total = [], 0
    for place in sorted(places, key=lambda k: rows[k]):
        total += rows[place]
        if total <= MAX_REVERSE_ROWS:
            chosen.append(place)
    return sorted(chosen)
