"""Whether images that share a pass leave each other alone: looked at for every batch, never concluded from one.

Two ways to couple images need two looks. Branches, routing and batch statistics that are detached change values, which
the passes of each image alone show. A coupling too weak for the values (a neighbour's image at weight 1e-5) has a
derivative: the outputs of some images then have a gradient at the inputs of others, where an uncoupled network has
exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.linear.custom import custom_operators
from rankscope.linear.methods import Method
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample

__all__ = ["Pulled", "pull_apart"]

_REACH = 60  # powers of two by which weights may be scaled, within what float32 carries beside any J


@dataclass(frozen=True)
class Pulled:
    """Jᵀw of every image, all cut points together, and the random weights w: (images, rows) by cut point.

    ``units`` are what the weights of each cut point were multiplied by, so that all count about alike; ``custom`` says
    whether some of them lie behind a custom operator.
    """

    weights: list[Tensor]
    units: Tensor
    gradient: Tensor
    custom: bool = False


def pull_apart(runner: Runner, method: Method, sample: Sample, lengths: Sequence[float]) -> Pulled | None:
    """Random outputs of every image pulled back to its input; ``None`` where one has a derivative by another's input.

    For each bit of the image number, the outputs of the images with that bit are pulled back and the gradient looked at
    where the inputs of those without are, and the other way round. Two images differ in some bit, so every pair is
    covered in both directions by 2·log₂(images) reverse passes. Random weights cancel with probability zero.
    ``lengths`` says about how long J·v is at each cut point.
    """
    images = len(sample.x)
    generator = torch.Generator(sample.x.device).manual_seed(0xB17)
    number = torch.arange(images, device=sample.x.device)
    units = [2.0 ** -max(min(math.frexp(n)[1] - 1, _REACH), -_REACH) if 0 < n < math.inf else 1.0 for n in lengths]
    with method.kernels(), reverse_mode(sample.x.device):
        x = sample.x.detach().clone().requires_grad_()
        every = runner.outputs(sample, x * 1)
        weights = [
            torch.randn(images, len(o) // images, generator=generator, device=o.device, dtype=o.dtype) * unit
            for o, unit in zip(every, units, strict=True)
        ]
        live = [k for k, o in enumerate(every) if o.requires_grad and o.numel()]
        gradient = torch.zeros_like(sample.x)
        if not live:
            return Pulled(weights, torch.tensor(units, dtype=torch.float64), gradient)
        outputs = [every[k] for k in live]
        custom = any(custom_operators(outputs))
        for bit in range(max((images - 1).bit_length(), 1)):
            chosen = (number >> bit & 1).bool()
            for side in (chosen, ~chosen) if images > 1 else (~chosen,):
                pulled = [(weights[k] * side.to(weights[k].dtype)[:, None]).reshape(-1) for k in live]
                (found,) = torch.autograd.grad(outputs, x, pulled, retain_graph=True, materialize_grads=True)
                if images > 1 and bool((found[~side] != 0).any()):  # NaN != 0: what cannot be judged is swept alone
                    return None
                if images == 1:
                    gradient = found
                elif bit == 0:
                    gradient[side] = found[side]
    return Pulled(weights, torch.tensor(units, dtype=torch.float64), gradient, custom)
