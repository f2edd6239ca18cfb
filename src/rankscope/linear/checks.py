"""Checks of one derivative: the adjoint identity, and whether a model that was asked for float64 computes in it."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import first_line, raise_ours
from rankscope.linear.by_torch import ByTorch
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Runner
from rankscope.slicing import LowerPrecision, Sample
from rankscope.spectra import scaled_norms

__all__ = ["ADJOINT_LIMIT", "FAINT", "adjoint_error", "lower_precision_inside"]

ADJOINT_LIMIT = 1e-3
FAINT = {torch.float32: 1e-34, torch.float64: 1e-300}  # some 10^4 above the smallest normal number
_UNDERFLOW = 1e-30  # products of float32 numbers below this may be zero in one mode and not in the other


def lower_precision_inside(runner: Runner, sample: Sample) -> str:
    """The narrowest dtype that a model casts to below the runner's own; empty where it casts to none.

    Of float64 probes the dtype says that they are no float64 reference.
    """
    with LowerPrecision(runner.dtype) as seen:
        outputs = runner.outputs(sample, sample.x)
    dtypes = [o.dtype for o in outputs if o.dtype.is_floating_point and o.dtype != runner.dtype]
    narrowest = seen.narrowest or next(iter(dtypes), None)
    return "" if narrowest is None else dtype_name(narrowest)


def adjoint_error(
    runner: Runner,
    sample: Sample,
    direction: Tensor,
    forward: tuple[Tensor, ...],
    watch: ByTorch | None = None,
) -> tuple[float | None, str]:
    """|⟨w, J·v⟩ − ⟨Jᵀw, v⟩| relative to its parts, and the first layer over the limit; ``None``: no reverse mode.

    ``forward`` holds J·v of every cut point for the one v = ``direction``. One reverse pass for all cut points; where
    they disagree, one for each, to name the layer. ``watch`` sees the pass.
    """
    products = [t.reshape(-1).double() for t in forward]
    known = torch.stack(
        [torch.isfinite(t).all() for t in products]
    ).tolist()  # a GPU is waited for once, here and below
    live = [k for k, t in enumerate(products) if t.numel() and known[k]]
    limit = 120 if runner.dtype == torch.float32 else 900
    if not live:
        return 0.0, ""
    device = products[0].device
    # drawn where they are needed: a processor takes as long for millions of them as a GPU for all the rest
    generator = torch.Generator(device).manual_seed(0xAD)
    weights, reach, lengths = {}, {}, {}
    for k, found in zip(live, scaled_norms([products[k] for k in live]).tolist(), strict=True):
        noise = torch.randn(products[k].shape, generator=generator, dtype=torch.float64, device=device)
        length = found or 1.0
        # near 1/length, so that all cut points count alike, but within what the working precision can carry
        unit = 2.0 ** -max(min(math.frexp(length)[1] - 1, limit), -limit)
        reach[k], lengths[k] = length * unit, length
        weights[k] = (products[k] / length + noise / noise.norm()) * unit
    sums = torch.stack([(weights[k] * products[k]).sum() for k in live]).tolist()
    expected = dict(zip(live, sums, strict=True))
    try:
        with reverse_mode(sample.x.device):
            x = sample.x.detach().clone().requires_grad_()
            with nullcontext() if watch is None else watch:
                outputs = runner.outputs(sample, x * 1)
            if watch is not None:
                watch.see(outputs)

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
            faint = [k for k in live if gaps[k] > ADJOINT_LIMIT and lengths[k] < FAINT[runner.dtype]]
            if faint and all(gaps[k] <= ADJOINT_LIMIT for k in live if k not in faint):
                width = dtype_name(runner.dtype)
                return None, f"the derivative at {runner.keys[faint[0]][0]!r} is too small for {width}"
    except Exception as error:  # a custom backward is code of the model
        raise_ours(error)
        return None, first_line(error)
    first = next((k for k in live if not gaps[k] <= ADJOINT_LIMIT), max(gaps, key=lambda k: gaps[k]))
    return gaps[first], runner.keys[first][0]
