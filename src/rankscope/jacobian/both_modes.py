"""Forward against reverse mode on every certified image, by one reverse pass of a whole batch.

The certificate's probes are of one mode, so they cannot see an operator whose two formulas differ: a wrong one, or the
two sides that torch takes of an input exactly at a kink. ⟨w, J·v⟩ = ⟨Jᵀw, v⟩ sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankscope.jacobian.reference import Certified
from rankscope.jacobian.sweep import SweepResult
from rankscope.linear.checks import ADJOINT_LIMIT, FAINT
from rankscope.linear.methods import Method
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Runner
from rankscope.linear.sharing import Pulled
from rankscope.slicing import Sample
from rankscope.spectra import scaled_norm

__all__ = ["Doubt", "doubts"]

_ROUNDING = 30  # times the relative error that the float64 probes found: what reverse mode's own may be


@dataclass(frozen=True)
class Doubt:
    """The first cut point of one image where the two modes disagree, and by how much of J·v."""

    image: int
    place: int
    error: float


def doubts(
    runner: Runner, method: Method, sample: Sample, pulled: Pulled, result: SweepResult, found: Certified
) -> list[Doubt]:
    """The images for which the two modes disagree. What ``found`` says of the first probe is its v."""
    images = len(sample.x)
    expected, lengths = _forward(pulled.weights, result, images)
    direction = found.tangent.reshape(-1).double()
    back = pulled.gradient.reshape(images, -1).double() @ direction
    units = pulled.units[:, None].to(lengths)
    live = torch.isfinite(lengths)
    size = torch.where(live, lengths * units, torch.zeros_like(lengths)).square().sum(0).sqrt()
    gaps = (back - torch.where(live, expected, torch.zeros_like(expected)).sum(0)).abs()
    suspect = (~(gaps <= ADJOINT_LIMIT * size)).nonzero().flatten().tolist()
    return [d for image in suspect for d in _first(runner, method, sample, image, pulled, expected, lengths, found)]


def _forward(weights: Sequence[Tensor], result: SweepResult, images: int) -> tuple[Tensor, Tensor]:
    """⟨w, J·v⟩ and ‖J·v‖ by cut point and image."""
    values, lengths = [], []
    for k, weight in enumerate(weights):
        product = torch.zeros(weight.numel(), dtype=torch.float64, device=weight.device)
        product[result.support[k]] = result.products[k][0]
        rows = product.view(images, -1)
        values.append((rows * weight).sum(1))
        lengths.append(scaled_norm(rows, dim=1))
    return torch.stack(values), torch.stack(lengths)


def _first(
    runner: Runner,
    method: Method,
    sample: Sample,
    image: int,
    pulled: Pulled,
    expected: Tensor,
    lengths: Tensor,
    found: Certified,
) -> list[Doubt]:
    """One image's cut points, each by a pass of its own, in the order of the network."""
    one = replace(sample, x=sample.x[image : image + 1].clone())
    direction = found.tangent.reshape(-1).double()
    with method.kernels(), reverse_mode(sample.x.device):
        x = one.x.detach().clone().requires_grad_()
        outputs = runner.outputs(one, x * 1)
        for k, out in enumerate(outputs):
            length = float(lengths[k, image])
            weight = pulled.weights[k][image].to(out.dtype)
            if not out.requires_grad or not FAINT[runner.dtype] < length < float("inf"):
                continue
            (back,) = torch.autograd.grad(out, x, weight, retain_graph=True, materialize_grads=True)
            gap = abs(float(back.reshape(-1).double() @ direction) - float(expected[k, image]))
            gap /= length * float(pulled.units[k])
            rounding = float(found.lengths[k, 0, image]) / length
            if gap > max(ADJOINT_LIMIT, _ROUNDING * rounding):  # a NaN says that reverse mode alone has no number
                return [Doubt(image, k, gap)]
    return []
