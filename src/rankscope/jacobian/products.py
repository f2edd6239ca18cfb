"""Products with the whole Jacobian of one cut point at one sample: J·v by forward mode, Jᵀ·u by reverse mode.

Two modes can disagree, where a backward formula is wrong; JᵀJ put together of both would then be of no matrix. For
Gaussian u and v the scalar ⟨u, J·v⟩ − ⟨Jᵀu, v⟩ is about ‖D‖_F, D being the difference of the two Jacobians, so a few
such pairs in float64 see a single wrong unit among 10⁵.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankscope._base.errors import MeasurementError
from rankscope._base.facts import FactKind
from rankscope.jacobian.out_of_range import lost_below
from rankscope.jacobian.reference import BLURRED
from rankscope.jacobian.shared_passes import SharedPasses
from rankscope.linear.checks import ADJOINT_LIMIT
from rankscope.linear.graphs import Replayed
from rankscope.linear.matrix import Matrix
from rankscope.spectra import scaled_norm
from rankscope.spectra.lanczos import SquaredMap

__all__ = ["PAIRS", "Pair", "Products", "products_of", "unchecked_products"]

PAIRS = 6
_AGREE = 1e-9  # of ‖u‖‖Jv‖, in float64: rounding gives some 1e-14, a wrong unit among 10⁵ about 1e-5
_DOUBLE = 2.0**-25  # float64 errs by 2^29 less than the two precisions differ; 16 for what need not scale exactly


@dataclass
class Products(Matrix):
    """One cut point's Jacobian, of which both modes of differentiation are compared."""

    replayed: Replayed | None = None
    """The product of all probes at once, where a GPU replays it."""
    together: Callable[[Tensor], Tensor | None] | None = None
    """J times columns that every cut point is asked for alike, where one push serves all of them."""

    def push_once(self, columns: Tensor) -> Tensor:
        """The same as ``push``, for columns that other cut points are pushed too."""
        found = None if self.together is None else self.together(columns)
        return self.push(columns) if found is None else found

    def relieve(self) -> None:
        """Memory ran out: a smaller chunk has other kernels than those recorded."""
        if self.replayed is not None and not self.replayed.refused:
            self.replayed.refused = "memory ran out"
        super().relieve()

    def squared(self) -> SquaredMap:
        """JᵀJ or JJᵀ, of which a GPU can record the kernels of a whole product and replay them."""

        def recorded(function: Callable[..., Any]) -> Replayed:
            self.replayed = Replayed(function, enabled=True)
            return self.replayed

        record = recorded if self.map.device.type == "cuda" else None
        dtype, device = self.map.dtype, self.map.device
        return SquaredMap(self.push, self.pull, self.shape, dtype, device, record=record, push_once=self.push_once)

    def modes_differ(self) -> float:
        """The largest |⟨u, J·v⟩ − ⟨Jᵀu, v⟩| of a few pairs, relative to ‖u‖‖Jv‖; 0 where both are zero."""
        generator = torch.Generator().manual_seed(0xADD)
        rows, columns = self.shape
        v = torch.randn(columns, PAIRS, generator=generator, dtype=torch.float64).to(self.map.device)
        u = torch.randn(rows, PAIRS, generator=generator, dtype=torch.float64).to(self.map.device)
        u, v = u.to(self.map.dtype), v.to(self.map.dtype)
        pushed, pulled = (part.double() for part in (self.push_once(v), self.pull(u)))
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
        return self._between(columns, SquaredMap.__call__)

    def once(self, columns: Tensor) -> Tensor:
        return self._between(columns, SquaredMap.once)

    def _between(self, columns: Tensor, product: Callable[[SquaredMap, Tensor], Tensor]) -> Tensor:
        assert self.fast is not None
        found = product(self.fast, columns)
        if self.other is None or math.isnan(self.scale):
            return found * math.nan
        self.other.exponent = self.fast.exponent
        return found + self.scale * (product(self.other, columns) - found)

    def one_way(self, columns: Tensor, *, once: bool = False) -> Tensor:
        assert self.fast is not None
        found = self.fast.one_way(columns, once=once).to(torch.float64)
        if self.other is None or math.isnan(self.scale):
            return found * math.nan
        return found + self.scale * (self.other.one_way(columns, once=once).to(found) - found)


@dataclass
class Pair:
    """The map in the working precision, what its products are compared with, and what was seen.

    ``flips`` counts units within rounding of a kink; ``gap`` is how far the two modes of differentiation disagree;
    ``vanishes`` says that products are too small for the range of the precision, ``blurred`` that a shorter precision
    has hardly a digit of them.
    """

    work: SquaredMap
    exact: SquaredMap | None
    certified: bool
    flips: int
    gap: float
    dense: tuple[SquaredMap, SquaredMap] | None = None
    """For all singular values of a float32 network: float64 products, and by how much those may err."""
    products: tuple[Products, ...] = ()
    vanishes: bool = False
    blurred: bool = False


def unchecked_products(passes: SharedPasses, place: int) -> Products:
    """Products in the working precision, which nothing was compared with."""
    together, chunk = passes.together(place, exact=False), passes.chunk(exact=False)
    return Products(passes.work(place), (passes.rows(place),), passes.budget, chunk, together=together)


def products_of(passes: SharedPasses, place: int) -> Pair:
    """The maps of one cut point at one sample, the second on the linear piece that the first one is on.

    Raises
    ------
    MeasurementError
        Where forward and reverse mode disagree, or reverse mode fails.
    """
    derivative, work, other = passes.derivative, unchecked_products(passes, place), passes.exact(place)
    if other is None:
        return Pair(*_unknown(work.squared()), False, 0, _agreeing(work, ADJOINT_LIMIT), products=(work,))
    together, chunk = passes.together(place, exact=True), passes.chunk(exact=True)
    exact, flips = Products(other[0], work.sizes, passes.budget, chunk, together=together), other[1]
    double = exact if exact.map.dtype == torch.float64 else work
    gap = _agreeing(double, ADJOINT_LIMIT)
    doubtful = derivative.in_doubt is not None and place >= derivative.in_doubt
    doubtful = doubtful or place in passes.misled
    v, found, wanted = _drawn(work, exact)
    vanishes = _vanishes(work, exact, v, found, wanted)
    blurred = derivative.scale != 1 and not _apart(found, wanted) <= BLURRED
    if gap > _AGREE or doubtful or vanishes or blurred:
        both = (work, exact)
        return Pair(*_unknown(work.squared()), False, flips, gap, products=both, vanishes=vanishes, blurred=blurred)
    fast, slow, both = work.squared(), exact.squared(), (work, exact)
    if derivative.scale == 1:
        if derivative.certificate.kind is not FactKind.PROBES:  # the reference is of no more digits
            return Pair(fast, slow, True, flips, gap, products=both)
        wide, narrow = exact.squared(), work.squared()
        blend = _blend(wide, narrow, _DOUBLE)
        return Pair(fast, slow, True, flips, gap, (wide, blend), both)
    return Pair(fast, _blend(fast, slow, derivative.scale), True, flips, gap, products=both)


def _blend(fast: SquaredMap, other: SquaredMap | None, scale: float) -> _Blend:
    own = fast if other is None else other
    return _Blend(own.push, own.pull, own.shape, own.dtype, own.device, fast=fast, other=other, scale=scale)


def _unknown(fast: SquaredMap) -> tuple[SquaredMap, SquaredMap]:
    return fast, _blend(fast, None, math.nan)


def _agreeing(products: Products, limit: float) -> float:
    gap = products.modes_differ()
    if math.isfinite(gap) and gap > limit:
        raise MeasurementError(
            f"forward and reverse mode disagree at {products.map.runner.keys[0].module!r} by {gap:.1e}; "
            "a backward formula of the model is not its derivative, or the model draws random numbers"
        )
    return gap


def _drawn(work: Products, exact: Products) -> tuple[Tensor, Tensor, Tensor]:
    """A random v, and J·v in both precisions."""
    v = torch.randn(work.shape[1], 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (p.push_once(v.to(p.map.device, p.map.dtype)) for p in (work, exact))
    return v, found, wanted


def _apart(found: Tensor, wanted: Tensor) -> float:
    """How far two products are apart, relative to the first."""
    gap, length = (float(scaled_norm(p.double(), 0)) for p in (found.double() - wanted.double(), found))
    return 0.0 if gap == 0 else gap / length if length else math.inf


def _vanishes(work: Products, exact: Products, v: Tensor, found: Tensor, wanted: Tensor) -> bool:
    """Whether the working precision gives zero where the other does not, or float64 itself may have lost it."""
    double = work if work.map.dtype == torch.float64 else exact
    zero = not bool((found != 0).any())
    if zero and bool((wanted != 0).any()):
        return True
    if double is exact and not zero:
        return False
    own = double.map.in_dtype(double.map.dtype)  # weights that were folded into one another have lost it before
    lost = lost_below(own, v.T.reshape(1, *own.sample.x.shape[1:]).to(own.device, own.dtype))
    return not bool((lost <= torch.finfo(torch.float64).eps * scaled_norm(found, 0)).all())
