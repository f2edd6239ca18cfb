"""What is known of a sweep's error: float64 probes, kinks, and the adjoint identity."""

from __future__ import annotations

import torch
from torch import Tensor

from rankscope.jacobian.graphs import Replayed
from rankscope.jacobian.kinks import SamePiece
from rankscope.jacobian.methods import Method
from rankscope.jacobian.reverse import reverse_mode
from rankscope.jacobian.runner import Runner
from rankscope.jacobian.sweep import Sweep, SweepResult
from rankscope.slicing import LowerPrecision, Sample

__all__ = ["ADJOINT_LIMIT", "Reference", "adjoint_error", "lower_precision_inside"]

ADJOINT_LIMIT = 1e-3
_UNDERFLOW = 1e-30  # products of float32 numbers below this may be zero in one mode and not in the other


class Reference:
    """The network in the other precision, on the linear piece that the working precision is on."""

    def __init__(self, runner: Runner, exact: Runner, method: Method, *, replay: bool) -> None:
        self.runner, self.exact, self.method = runner, exact, method
        self._sample: Sample | None = None
        self._products = Replayed(self._compute, enabled=replay)

    def _compute(self, x: Tensor, exact_x: Tensor, tangents: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        assert self._sample is not None
        images = len(x)
        piece = SamePiece()
        given = self._sample
        one = Sample(exact_x, given.name, given.keyword, given.to(self.exact.device, self.exact.dtype).extra)
        for each in (self.runner, self.exact):
            each.rows = [None] * len(each.keys)
        with self.runner.hooked(), piece.recording():
            self.runner.outputs(given, x)
        with self.exact.hooked(), piece.aligning(images):
            self.exact.outputs(one, exact_x)
        with self.exact.hooked(), piece.replaying():
            products = self.method(self.exact, one, tangents)
        flips = piece.flips if piece.flips is not None else torch.zeros(images, dtype=torch.long, device=x.device)
        return products, flips

    def lengths(self, sample: Sample, sweep: Sweep, result: SweepResult, probes: Tensor) -> tuple[Tensor, Tensor]:
        """‖(J − J₆₄)·g‖ for every cut point, probe g and image; and the units moved across their kink, by image.

        Rows that the sweep dropped count with their reference value, so a bound from these covers dropping them too.
        """
        self._sample = sample
        tangents = sweep.combine(probes).to(self.exact.dtype)
        products, flips = self._products("probes", (sample.x, sample.x.to(self.exact.dtype), tangents))
        images = len(sample.x)
        lengths = []
        for k, full in enumerate(products):
            difference = full.to(torch.float64, copy=True)
            difference[:, result.support[k]] -= result.products[k]
            lengths.append(torch.linalg.vector_norm(difference.view(len(probes), images, -1), dim=2))
        return torch.stack(lengths), flips


def lower_precision_inside(exact: Runner, sample: Sample) -> bool:
    """Whether a model that was asked for float64 casts to less inside, so that its probes are no float64 reference."""
    with LowerPrecision() as seen:
        outputs = exact.outputs(sample, sample.x)
    return seen.found or any(o.dtype != torch.float64 for o in outputs)


def adjoint_error(
    runner: Runner, sample: Sample, direction: Tensor, forward: tuple[Tensor, ...]
) -> tuple[float | None, str]:
    """|⟨w, J·v⟩ − ⟨Jᵀw, v⟩| relative to its parts, and the first layer over the limit; ``None``: no reverse mode.

    ``forward`` holds J·v of every cut point for the one v = ``direction``. One reverse pass for all cut points; where
    they disagree, one for each, to name the layer.
    """
    generator = torch.Generator().manual_seed(0xAD)
    runner.rows = [None] * len(runner.keys)
    products = [t.reshape(-1).double() for t in forward]
    live = [k for k, t in enumerate(products) if t.numel() and float(t.norm()) < float("inf")]
    if not live:
        return 0.0, ""
    weights = {}
    for k in live:
        noise = torch.randn(products[k].shape, generator=generator, dtype=torch.float64).to(products[k].device)
        length = float(products[k].norm()) or 1.0
        weights[k] = (products[k] / length + noise / noise.norm()) / length
    expected = {k: float((weights[k] * products[k]).sum()) for k in live}
    try:
        with reverse_mode():
            x = sample.x.detach().clone().requires_grad_()
            outputs = runner.outputs(sample, x * 1)

            def gap(chosen: list[int]) -> float:
                total = sum((weights[k].to(outputs[k].dtype) * outputs[k]).sum() for k in chosen)
                grad = torch.autograd.grad(total, x, retain_graph=True)[0]
                back = float((grad.double() * direction.double()).sum())
                if not any(expected[k] for k in chosen):  # Jv = 0 for a random v: J is zero, so Jᵀw has to be
                    return float(abs(back) > _UNDERFLOW)
                return abs(back - sum(expected[k] for k in chosen))

            together = gap(live) / len(live)
            if together < 1e-3 / len(live):
                return together, ""
            gaps = {k: gap([k]) for k in live}
    except RuntimeError as error:
        return None, (str(error).strip().splitlines() or ["reverse mode failed"])[0]
    first = next((k for k in live if not gaps[k] <= ADJOINT_LIMIT), max(gaps, key=lambda k: gaps[k]))
    return gaps[first], runner.keys[first][0]
