"""What is known of a sweep's error: float64 probes, kinks, and the adjoint identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankscope.jacobian.reverse import reverse_mode
from rankscope.jacobian.runner import Runner
from rankscope.jacobian.sweep import Sweep, SweepResult
from rankscope.slicing import Sample
from rankscope.spectra import norm_bound

__all__ = ["adjoint_error", "count_kinks", "error_bounds", "kink_sides", "lower_precision_inside"]

_aten = torch.ops.aten
_KINKED = {
    _aten.relu.default,
    _aten.relu_.default,
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.leaky_relu.default,
    _aten.leaky_relu_.default,
    _aten.threshold.default,
    _aten.hardswish.default,
    _aten.hardswish_.default,
    _aten.hardsigmoid.default,
    _aten.hardsigmoid_.default,
    _aten.clamp.default,
    _aten.clamp_min.default,
}


def error_bounds(exact: Sweep, sample: Sample, result: SweepResult, probes: Tensor) -> list[list[float]]:
    """Bound on ‖J − J₆₄‖₂ for each cut point and image, wrong with probability 10^−q for q probes.

    The stored columns times the probes are compared with the same probes pushed through the network in float64; rows
    that were dropped count with their float64 value, so the bound covers dropping them too.
    """
    reference: tuple[Tensor, ...]
    exact.runner.rows = [None] * len(exact.runner.keys)
    reference = exact.push(exact.runner, sample, exact.combine(probes))
    images = len(sample.x)
    bounds = []
    for k, full in enumerate(reference):
        difference = full.to(torch.float64)
        difference[:, result.support[k]] -= result.products[k]
        per_image = difference.view(len(probes), images, -1)
        bounds.append([norm_bound(per_image[:, i], dim=0) for i in range(images)])
    return bounds


class _Masks(TorchDispatchMode):
    """Which side of their kink the inputs of piecewise linear functions lie on."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KINKED:
            self.masks.append(args[0] > 0)
        return func(*args, **(kwargs or {}))


def kink_sides(runner: Runner, sample: Sample) -> list[Tensor]:
    """For every piecewise linear operator of one forward pass, which of its inputs are positive."""
    runner.rows = [None] * len(runner.keys)
    with _Masks() as seen:
        runner.outputs(sample, sample.x)
    return seen.masks


def count_kinks(sides: list[Tensor], exact_sides: list[Tensor], images: int) -> list[int]:
    """For each image, the units whose input lies on different sides of a kink in the two precisions."""
    counts = torch.zeros(images, dtype=torch.long)
    for a, b in zip(sides, exact_sides, strict=False):
        if a.shape == b.shape and a.numel() % images == 0:
            counts += (a != b).reshape(images, -1).sum(1).cpu()
    return [int(c) for c in counts]


class _Narrow(TorchDispatchMode):
    """Whether any operator of a float64 model works in less than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 and t.numel() > 1:
                self.found = True
        return out


def lower_precision_inside(exact: Runner, sample: Sample) -> bool:
    """Whether a model that was asked for float64 casts to less inside, so that its probes are no float64 reference."""
    with _Narrow() as seen:
        outputs = exact.outputs(sample, sample.x)
    return seen.found or any(o.dtype != torch.float64 for o in outputs)


def adjoint_error(
    runner: Runner, sample: Sample, direction: Tensor, forward: tuple[Tensor, ...]
) -> tuple[float | None, str]:
    """|⟨w, J·v⟩ − ⟨Jᵀw, v⟩| relative to its parts, and the worst layer; ``None`` where reverse mode fails.

    ``forward`` holds J·v of every cut point for the one v = ``direction``. One reverse pass for all cut points; where
    they disagree, one for each, to name the layer.
    """
    generator = torch.Generator().manual_seed(0xAD)
    runner.rows = [None] * len(runner.keys)
    products = [t.reshape(-1).double() for t in forward]
    live = [k for k, t in enumerate(products) if 0 < float(t.norm()) < float("inf")]
    if not live:
        return 0.0, ""
    weights = {}
    for k in live:
        noise = torch.randn(products[k].shape, generator=generator, dtype=torch.float64).to(products[k].device)
        length = products[k].norm()
        weights[k] = (products[k] / length + noise / noise.norm()) / length
    expected = {k: float((weights[k] * products[k]).sum()) for k in live}
    try:
        with reverse_mode():
            x = sample.x.detach().clone().requires_grad_()
            outputs = runner.outputs(sample, x * 1)

            def gap(chosen: list[int]) -> float:
                total = sum((weights[k].to(outputs[k].dtype) * outputs[k]).sum() for k in chosen)
                grad = torch.autograd.grad(total, x, retain_graph=True)[0]
                return abs(float((grad.double() * direction.double()).sum()) - sum(expected[k] for k in chosen))

            together = gap(live) / len(live)
            if together < 1e-3 / len(live):
                return together, ""
            gaps = {k: gap([k]) for k in live}
    except RuntimeError as error:
        return None, (str(error).strip().splitlines() or ["reverse mode failed"])[0]
    worst = max(gaps, key=lambda k: gaps[k])
    return gaps[worst], runner.keys[worst][0]
