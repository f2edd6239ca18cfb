"""Whether images that share a pass leave each other alone: looked at for every batch, never concluded from one.

Two ways to couple images need two looks. Branches, routing and batch statistics that are detached change values, which
the passes of each image alone show. A coupling too weak for the values (a neighbour's image at weight 1e-5) has a
derivative: the outputs of some images then have a gradient at the inputs of others, where an uncoupled network has
exact zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.jacobian.methods import Method
from rankscope.jacobian.reverse import reverse_mode
from rankscope.jacobian.runner import Runner
from rankscope.slicing import Sample

__all__ = ["APART", "derivative_across", "gap", "worst_gap"]

APART = 1e-5  # of the largest entry: some ten times what rounding does to one image in two batch sizes (measured)


def derivative_across(runner: Runner, method: Method, sample: Sample) -> bool:
    """Whether any image's outputs at any cut point have a derivative by another image's input.

    For each bit of the image number, the outputs of the images with that bit are pulled back and the gradient looked at
    where the inputs of those without are, and the other way round. Two images differ in some bit, so every pair is
    covered in both directions by 2·log₂(images) reverse passes. Random weights cancel with probability zero.
    """
    images = len(sample.x)
    generator = torch.Generator().manual_seed(0xB17)
    number = torch.arange(images, device=sample.x.device)
    runner.rows = [None] * len(runner.keys)
    with method.kernels(), reverse_mode():
        x = sample.x.detach().clone().requires_grad_()
        outputs = [o for o in runner.outputs(sample, x * 1) if o.requires_grad and o.numel()]
        if not outputs:
            return False
        weights = [torch.randn(images, len(o) // images, generator=generator).to(o) for o in outputs]
        for bit in range((images - 1).bit_length()):
            chosen = (number >> bit & 1).bool()
            for side in (chosen, ~chosen):
                pulled = [(w * side.to(w.dtype)[:, None]).reshape(-1) for w in weights]
                (found,) = torch.autograd.grad(outputs, x, pulled, retain_graph=True, materialize_grads=True)
                if bool((found[~side] != 0).any()):  # NaN != 0: what cannot be judged is swept alone
                    return True
    return False


def worst_gap(found: Tensor, expected: Tensor, images: int = 1) -> float:
    """The largest difference of any image, relative to the largest entry of that image; NaN where both are equals NaN.

    >>> worst_gap(torch.tensor([1.0, 2.0, 0.0, 0.5]), torch.tensor([1.0, 2.0, 0.0, 1.0]), images=2)
    0.5
    """
    return float(gap(found, expected, images))


def gap(found: Tensor, expected: Tensor, images: int = 1) -> Tensor:
    """The same as a tensor, so that many are waited for once."""
    if found.shape != expected.shape:
        return torch.full((), torch.inf, dtype=torch.float64, device=expected.device)
    if not expected.numel():
        return torch.zeros((), dtype=torch.float64, device=expected.device)
    a, b = (t.reshape(images, -1) for t in (found, expected))
    same = (a == b) | (a.isnan() & b.isnan())  # infinities of one sign too
    apart = torch.where(same, torch.zeros_like(a), (a - b).abs()).amax(1)
    top = b.nan_to_num(0.0, 0.0, 0.0).abs().amax(1)
    return torch.where(top > 0, apart / top, apart).max().double()  # a NaN stays one
