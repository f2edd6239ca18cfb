"""Products with the whole Jacobian of one cut point at one sample: J·v by forward mode, Jᵀ·u by reverse mode.

Two modes can disagree, where a backward formula is wrong; JᵀJ put together of both would then be of no matrix. For
Gaussian u and v the scalar ⟨u, J·v⟩ − ⟨Jᵀu, v⟩ is about ‖D‖_F, D being the difference of the two Jacobians, so a few
such pairs in float64 see a single wrong unit among 10⁵.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankscope._base.errors import MeasurementError, first_line, is_out_of_memory
from rankscope._base.facts import FactKind
from rankscope.jacobian.derivative import Derivative
from rankscope.linear.budget import bytes_per_tangent, chunk_for
from rankscope.linear.checks import ADJOINT_LIMIT
from rankscope.linear.kinks import SamePiece
from rankscope.linear.methods import Method
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample
from rankscope.spectra import scaled_norm
from rankscope.spectra.lanczos import SquaredMap

__all__ = ["Pair", "Products", "products_of"]

_PAIRS = 6
_AGREE = 1e-9  # of ‖u‖‖Jv‖, in float64: rounding gives some 1e-14, a wrong unit among 10⁵ about 1e-5
_DOUBLE = 2.0**-25  # float64 errs by 2^29 less than the two precisions differ; 16 for what need not scale exactly

Context = Callable[[], AbstractContextManager[Any]]


@dataclass
class Products:
    """J and Jᵀ as products with columns, on one linear piece of the network.

    ``forward`` is what a push runs inside, ``arithmetic`` what both run inside.
    """

    runner: Runner
    method: Method
    sample: Sample
    rows: int
    budget: int
    forward: Context = nullcontext
    arithmetic: Context = nullcontext
    each: int = 0
    """Bytes that one tangent takes; measured at the first push."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.sample.x[0].numel()

    def push(self, columns: Tensor) -> Tensor:
        """J times (columns, r), shape (rows, r)."""
        shape = tuple(self.sample.x.shape[1:])
        tangents = columns.T.reshape(-1, *shape)
        with self.runner.hooked(), self.arithmetic():
            if not self.each:
                self.each = bytes_per_tangent(self.runner, self.sample, linear=False)
            count = len(tangents)
            chunk = count if self.method.whole else chunk_for(count, self.each, self.budget, self.runner.device)
            parts = []
            for start in range(0, count, chunk):
                with self.forward():
                    parts.append(self.method(self.runner, self.sample, tangents[start : start + chunk])[0])
        return torch.cat(parts).T

    def pull(self, cotangents: Tensor) -> Tensor:
        """Jᵀ times (rows, r), shape (columns, r): one forward pass, and one backward pass a column."""
        with self.runner.hooked(), self.arithmetic(), self.method.kernels(), reverse_mode():
            x = self.sample.x.detach().clone().requires_grad_()
            with self.forward():  # a backward formula in Python must not be taken for the network's own operators
                out = self.runner.outputs(self.sample, x * 1)[0]
            try:
                found = [torch.autograd.grad(out, x, u, retain_graph=True)[0] for u in cotangents.T.contiguous()]
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise MeasurementError(
                    f"the full Jacobian's products need reverse mode, which fails at {self.runner.keys[0].module!r}: "
                    f"{first_line(error)}; jacobian_rank measures columns by forward mode alone"
                ) from error
        return torch.stack([g.reshape(-1) for g in found], 1)

    def squared(self) -> SquaredMap:
        return SquaredMap(self.push, self.pull, self.shape, self.runner.dtype, self.runner.device)

    def modes_differ(self) -> float:
        """The largest |⟨u, J·v⟩ − ⟨Jᵀu, v⟩| of a few pairs, relative to ‖u‖‖Jv‖; 0 where both are zero."""
        generator = torch.Generator().manual_seed(0xADD)
        rows, columns = self.shape
        v = torch.randn(columns, _PAIRS, generator=generator, dtype=torch.float64).to(self.runner.device)
        u = torch.randn(rows, _PAIRS, generator=generator, dtype=torch.float64).to(self.runner.device)
        pushed, pulled = (
            part.double() for part in (self.push(v.to(self.runner.dtype)), self.pull(u.to(self.runner.dtype)))
        )
        gap = ((u * pushed).sum(0) - (pulled * v).sum(0)).abs()
        scale = torch.maximum(u.norm(dim=0) * scaled_norm(pushed, 0), v.norm(dim=0) * scaled_norm(pulled, 0))
        shares = torch.where(gap == 0, gap, gap / scale)
        return float(shares.max()) if bool(torch.isfinite(shares).all()) else math.inf


@dataclass
class _Blend(SquaredMap):
    """What lies ``scale`` of the way from one map's products to another's: a NaN says that nothing is known."""

    fast: SquaredMap | None = None
    other: SquaredMap | None = None
    scale: float = math.nan

    def __call__(self, columns: Tensor) -> Tensor:
        assert self.fast is not None
        found = self.fast(columns)
        if self.other is None or math.isnan(self.scale):
            return found * math.nan
        self.other.exponent = self.fast.exponent
        return found + self.scale * (self.other(columns) - found)


@dataclass
class Pair:
    """The map in the working precision, what its products are compared with, and what was seen.

    ``flips`` counts units within rounding of a kink; ``gap`` is how far the two modes of differentiation disagree.
    """

    work: SquaredMap
    exact: SquaredMap | None
    certified: bool
    flips: int
    gap: float
    dense: tuple[SquaredMap, SquaredMap] | None = None
    """For all singular values of a float32 network: float64 products, and by how much those may err."""


def products_of(derivative: Derivative, place: int, sample: Sample, budget: int) -> Pair:
    """The maps of one cut point at one sample, the second on the linear piece that the first one is on.

    Raises
    ------
    MeasurementError
        Where forward and reverse mode disagree, or reverse mode fails.
    """
    assert derivative.method is not None
    runner = derivative.runner.up_to(place)
    piece = SamePiece()
    with runner.hooked(), piece.recording():
        rows = runner.outputs(sample, sample.x)[0].numel()
    work = Products(runner, derivative.method, sample, rows, budget)
    reference = derivative.reference
    if reference is None:
        return Pair(*_unknown(work.squared()), False, 0, _agreeing(work, ADJOINT_LIMIT))
    other = reference.exact.up_to(place)
    one = sample.to(other.device, other.dtype)
    with other.hooked(), reference.arithmetic(), piece.aligning(1):
        other.outputs(one, one.x)
    exact = Products(
        other,
        reference.method,
        one,
        rows,
        budget,
        forward=piece.replaying,
        arithmetic=reference.arithmetic,
    )
    flips = 0 if piece.flips is None else int(piece.flips.sum())
    double = exact if other.dtype == torch.float64 else work
    gap = _agreeing(double, ADJOINT_LIMIT)
    doubtful = derivative.in_doubt is not None and place >= derivative.in_doubt
    doubtful = doubtful or place in derivative.misled(sample)
    if gap > _AGREE or doubtful or _vanishes(work, exact):
        return Pair(*_unknown(work.squared()), False, flips, gap)
    fast, slow = work.squared(), exact.squared()
    if derivative.scale == 1:
        if derivative.certificate.kind is not FactKind.PROBES:  # the reference is of no more digits
            return Pair(fast, slow, True, flips, gap)
        wide, narrow = exact.squared(), work.squared()
        blend = _Blend(wide.push, wide.pull, wide.shape, wide.dtype, wide.device, None, wide, narrow, _DOUBLE)
        return Pair(fast, slow, True, flips, gap, (wide, blend))
    blend = _Blend(slow.push, slow.pull, slow.shape, slow.dtype, slow.device, None, fast, slow, derivative.scale)
    return Pair(fast, blend, True, flips, gap)


def _unknown(fast: SquaredMap) -> tuple[SquaredMap, SquaredMap]:
    return fast, _Blend(fast.push, fast.pull, fast.shape, fast.dtype, fast.device, None, fast)


def _agreeing(products: Products, limit: float) -> float:
    gap = products.modes_differ()
    if math.isfinite(gap) and gap > limit:
        raise MeasurementError(
            f"forward and reverse mode disagree at {products.runner.keys[0].module!r} by {gap:.1e}; "
            "a backward formula of the model is not its derivative, or the model draws random numbers"
        )
    return gap


def _vanishes(work: Products, exact: Products) -> bool:
    """Whether the working precision gives zero where the other does not, as below its smallest number."""
    v = torch.randn(work.shape[1], 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (p.push(v.to(p.runner.device, p.runner.dtype)) for p in (work, exact))
    return not bool((found != 0).any()) and bool((wanted != 0).any())
