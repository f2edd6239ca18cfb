"""Products with the whole Jacobian of one cut point at one sample: J·v by forward mode, Jᵀ·u by reverse mode.

Two modes can disagree, where a backward formula is wrong; JᵀJ put together of both would then be of no matrix. For
Gaussian u and v the scalar ⟨u, J·v⟩ − ⟨Jᵀu, v⟩ is about ‖D‖_F, D being the difference of the two Jacobians, so a few
such pairs in float64 see a single wrong unit among 10⁵.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope._base.errors import MeasurementError
from rankscope._base.facts import FactKind
from rankscope.linear.checks import ADJOINT_LIMIT
from rankscope.linear.derivative import Derivative
from rankscope.linear.kinks import SamePiece
from rankscope.linear.matrix import Matrix
from rankscope.slicing import Sample
from rankscope.spectra import scaled_norm
from rankscope.spectra.lanczos import SquaredMap

__all__ = ["Pair", "Products", "products_of"]

_PAIRS = 6
_AGREE = 1e-9  # of ‖u‖‖Jv‖, in float64: rounding gives some 1e-14, a wrong unit among 10⁵ about 1e-5
_DOUBLE = 2.0**-25  # float64 errs by 2^29 less than the two precisions differ; 16 for what need not scale exactly


class Products(Matrix):
    """One cut point's Jacobian, of which both modes of differentiation are compared."""

    def squared(self) -> SquaredMap:
        return SquaredMap(self.push, self.pull, self.shape, self.map.dtype, self.map.device)

    def modes_differ(self) -> float:
        """The largest |⟨u, J·v⟩ − ⟨Jᵀu, v⟩| of a few pairs, relative to ‖u‖‖Jv‖; 0 where both are zero."""
        generator = torch.Generator().manual_seed(0xADD)
        rows, columns = self.shape
        v = torch.randn(columns, _PAIRS, generator=generator, dtype=torch.float64).to(self.map.device)
        u = torch.randn(rows, _PAIRS, generator=generator, dtype=torch.float64).to(self.map.device)
        pushed, pulled = (part.double() for part in (self.push(v.to(self.map.dtype)), self.pull(u.to(self.map.dtype))))
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
    own = derivative.plain(sample).of_place(place)
    piece = SamePiece()
    with piece.recording():
        sizes = (own.outputs()[0].numel(),)
    work = Products(own, sizes, budget)
    other = derivative.other(sample)
    if other is None:
        return Pair(*_unknown(work.squared()), False, 0, _agreeing(work, ADJOINT_LIMIT))
    exact = Products(other.of_place(place).on_piece(piece), sizes, budget)
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
            f"forward and reverse mode disagree at {products.map.runner.keys[0].module!r} by {gap:.1e}; "
            "a backward formula of the model is not its derivative, or the model draws random numbers"
        )
    return gap


def _vanishes(work: Products, exact: Products) -> bool:
    """Whether the working precision gives zero where the other does not, as below its smallest number."""
    v = torch.randn(work.shape[1], 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (p.push(v.to(p.map.device, p.map.dtype)) for p in (work, exact))
    return not bool((found != 0).any()) and bool((wanted != 0).any())
