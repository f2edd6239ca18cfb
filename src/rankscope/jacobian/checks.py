"""What is known of a sweep's error: float64 probes, kinks, and the adjoint identity."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rankscope.jacobian.graphs import Replayed
from rankscope.jacobian.kinks import SamePiece
from rankscope.jacobian.methods import Method
from rankscope.jacobian.reverse import reverse_mode
from rankscope.jacobian.runner import Runner
from rankscope.jacobian.sharing import gap, worst_gap
from rankscope.jacobian.sweep import Sweep, SweepResult
from rankscope.slicing import LowerPrecision, Sample
from rankscope.spectra import scaled_norm

__all__ = ["ADJOINT_LIMIT", "Certified", "Reference", "adjoint_error", "lower_precision_inside"]

ADJOINT_LIMIT = 1e-3
_FAINT = {torch.float32: 1e-34, torch.float64: 1e-300}  # some 10^4 above the smallest normal number
_UNDERFLOW = 1e-30  # products of float32 numbers below this may be zero in one mode and not in the other


@dataclass
class Certified:
    """What the probes found of one batch.

    ``lengths`` are ‖E·g‖ by cut point, probe and image, E being the sweep's error; ``flips`` the units that were moved
    across their kink, by image. ``apart`` is the largest relative difference between the batch and the images alone,
    of outputs, inputs of piecewise linear functions and tangents; 0 for one image. ``strayed`` is the largest relative
    difference between what was swept and the model's own pass of the image: of the probes' tangents, and of the outputs
    of a traced network.
    """

    lengths: Tensor
    flips: Tensor
    apart: float = 0.0
    strayed: float = 0.0


class Reference:
    """Each image alone in the other precision, on the linear piece that the working precision is on."""

    def __init__(
        self,
        runner: Runner,
        exact: Runner,
        method: Method,
        work_method: Method,
        *,
        replay: bool,
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.runner, self.exact, self.method, self.work_method = runner, exact, method, work_method
        self.arithmetic = arithmetic
        self._sample: Sample | None = None
        self._alone = Replayed(self._compute, enabled=replay)

    def _compute(self, x: Tensor, exact_x: Tensor, tangents: Tensor, *recorded: Tensor) -> tuple[Any, ...]:
        """One image: J₆₄·g of every cut point, flips, its outputs, and how far it was from the batch's piece."""
        assert self._sample is not None
        piece = SamePiece()
        given = self._sample
        one = Sample(exact_x, given.name, given.keyword, given.to(self.exact.device, self.exact.dtype).extra)
        for each in (self.runner, self.exact):
            each.rows = [None] * len(each.keys)
        piece.inputs = list(recorded)
        with self.runner.hooked(), piece.following() if recorded else piece.recording():
            outputs = self.runner.outputs(replace(given, x=x), x)
        with self.exact.hooked(), piece.aligning(1), self.arithmetic():
            self.exact.outputs(one, exact_x)
        with self.exact.hooked(), piece.replaying(), self.arithmetic():
            products = self.method(self.exact, one, tangents)
        flips = piece.flips if piece.flips is not None else torch.zeros(1, dtype=torch.long, device=x.device)
        return products, flips, outputs, piece.apart if piece.apart is not None else x.new_zeros(())

    def certify(
        self,
        sample: Sample,
        sweep: Sweep,
        result: SweepResult,
        probes: Tensor,
        scale: float,
        traced: tuple[Tensor, ...] | None = None,
    ) -> Certified | None:
        """Bounds for every image of a batch; ``None`` where the images alone do not run as they do together.

        Rows that the sweep dropped count with their reference value, so a bound from these covers dropping them too.
        ``scale`` says by how much the working precision errs less than the difference of the two precisions. ``traced``
        are the outputs of a traced network that stood for the model in the sweep.
        """
        self._sample = sample
        images = len(sample.x)
        tangents = sweep.combine(probes)
        batch, shared, shapes = None, None, None
        if images > 1:
            batch, shared, shapes = self._together(sample)
        lengths, flips, apart = [], [], 0.0
        strayed: list[Tensor] = []
        for image in range(images):
            x = sample.x if images == 1 else sample.x[image : image + 1].clone()
            piece = None if shared is None or shapes is None else shared.of_image(image, images, shapes)
            if images > 1 and piece is None:
                return None
            inputs = (x, x.to(self.exact.dtype), tangents.to(self.exact.dtype))
            # a recorded pass holds whatever else the call takes as constants
            key = tuple((k, repr(v)) for k, v in sample.extra.items()) if self._alone.enabled else ()
            products, moved, outputs, off = self._alone(key, (*inputs, *([] if piece is None else piece.inputs)))
            found, tops = self._errors(products, result, image, images)
            share = found.amax(1) / tops.amax(1)
            strayed.append(torch.where(tops.amax(1) > 0, share, found.amax(1)).max().double())
            for out, other in zip(outputs, traced or (), strict=False):
                strayed.append(gap(other.view(images, -1)[image] if images > 1 else other, out))
            if batch is not None:
                gaps = [float(off)]
                for out, whole in zip(outputs, batch, strict=True):
                    gaps.append(worst_gap(whole.view(images, -1)[image], out))
                error, top = found.amax(1), tops.amax(1)
                gaps.append(float(torch.where(top > 0, error / top, error).max()))
                apart = max((apart, *gaps), key=lambda g: math.inf if g != g else g)
                if scale != 1:  # the working precision alone, and then what sharing changes
                    own = self._own(sample, x, tangents)
                    alone = [scaled_norm(p.double() - q.double(), dim=1) for p, q in zip(products, own, strict=True)]
                    found = scale * torch.stack(alone) + found
            else:
                found = scale * found
            lengths.append(found)
            flips.append(moved.clone())
        far = torch.stack(strayed)
        worst = float(torch.where(far.isnan(), torch.full_like(far, torch.inf), far).max())
        return Certified(torch.stack(lengths, 2), torch.cat(flips), apart, worst)

    def _together(self, sample: Sample) -> tuple[tuple[Tensor, ...], SamePiece, list[torch.Size]]:
        """The batch's outputs and its piece, and the shapes of the piece of one image alone."""
        whole, first = SamePiece(), SamePiece()
        self.runner.rows = [None] * len(self.runner.keys)
        with self.runner.hooked():
            with whole.recording():
                outputs = self.runner.outputs(sample, sample.x)
            with first.recording():
                self.runner.outputs(sample, sample.x[:1])
        return outputs, whole, [t.shape for t in first.inputs]

    def _own(self, sample: Sample, x: Tensor, tangents: Tensor) -> tuple[Tensor, ...]:
        self.runner.rows = [None] * len(self.runner.keys)
        with self.runner.hooked():
            return self.work_method(self.runner, replace(sample, x=x), tangents.to(self.runner.dtype))

    @staticmethod
    def _errors(products: tuple[Tensor, ...], result: SweepResult, image: int, images: int) -> tuple[Tensor, Tensor]:
        """‖(J − J₆₄)·g‖ and ‖J₆₄·g‖ of one image, by cut point and probe."""
        lengths, tops = [], []
        for k, full in enumerate(products):
            difference = full.to(torch.float64, copy=True)
            tops.append(scaled_norm(difference, dim=1))
            start = sum(result.kept[k][:image])
            stop = start + result.kept[k][image]
            places = result.support[k][start:stop] - image * result.rows[k]
            difference[:, places] -= result.products[k][:, start:stop]
            lengths.append(scaled_norm(difference, dim=1))
        return torch.stack(lengths), torch.stack(tops)


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
    live = [k for k, t in enumerate(products) if t.numel() and bool(torch.isfinite(t).all())]
    limit = 120 if runner.dtype == torch.float32 else 900
    if not live:
        return 0.0, ""
    weights, reach, lengths = {}, {}, {}
    for k in live:
        noise = torch.randn(products[k].shape, generator=generator, dtype=torch.float64).to(products[k].device)
        length = float(scaled_norm(products[k], 0)) or 1.0
        # near 1/length, so that all cut points count alike, but within what the working precision can carry
        unit = 2.0 ** -max(min(math.frexp(length)[1] - 1, limit), -limit)
        reach[k], lengths[k] = length * unit, length
        weights[k] = (products[k] / length + noise / noise.norm()) * unit
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
                return abs(back - sum(expected[k] for k in chosen)) / min(reach[k] for k in chosen)

            even = all(0.5 <= reach[k] <= 2 for k in live)
            together = gap(live) / len(live) if even else math.inf
            if together < 1e-3 / len(live):
                return together, ""
            gaps = {k: gap([k]) for k in live}
            unknown = [k for k in live if not math.isfinite(gaps[k])]
            known = [k for k in live if math.isfinite(gaps[k])]
            if unknown and all(gaps[k] <= ADJOINT_LIMIT for k in known):
                return None, f"reverse mode gives NaN or infinite numbers at {runner.keys[unknown[0]][0]!r}"
            live = known
            # beside denormal numbers a relative difference says nothing
            faint = [k for k in live if gaps[k] > ADJOINT_LIMIT and lengths[k] < _FAINT[runner.dtype]]
            if faint and all(gaps[k] <= ADJOINT_LIMIT for k in live if k not in faint):
                width = str(runner.dtype).removeprefix("torch.")
                return None, f"the derivative at {runner.keys[faint[0]][0]!r} is too small for {width}"
    except RuntimeError as error:
        return None, (str(error).strip().splitlines() or ["reverse mode failed"])[0]
    first = next((k for k in live if not gaps[k] <= ADJOINT_LIMIT), max(gaps, key=lambda k: gaps[k]))
    return gaps[first], runner.keys[first][0]
