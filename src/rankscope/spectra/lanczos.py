"""The Lanczos process on JᵀJ or JJᵀ from several random starts at once.

The products may be in float32; the basis, its orthogonalisation and the coefficients are float64. Every new vector is
orthogonalised twice against all earlier ones, so the basis Q is orthonormal to rounding. What the products' errors do
is then exact: with F the errors of the products and U the components that symmetry says are zero and that were
removed, T belongs to A + E for a symmetric E with

    ‖E‖₂ = ‖F − QU‖₂ ≤ ‖F‖₂ + ‖U‖_F    (Kahan, Parlett and Jiang, SIAM J. Numer. Anal. 1982).

‖U‖_F is measured here, as ``removed``; ‖F‖₂ is what a comparison with float64 products bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import MeasurementError
from rankscope.spectra.certificate import norm_bound
from rankscope.spectra.scale import exponent_near

__all__ = ["LanczosProcess", "NotFiniteError", "SquaredMap", "product_error"]

Product = Callable[[Tensor], Tensor]
Recorded = Callable[[Any, Sequence[Tensor]], Any]
"""A function as it is called where its kernels may be replayed: with a key, and with its tensors."""
_INVARIANT = 1e-13  # a residual this small relative to ‖T‖ is rounding: what is dropped with it enters ``removed``
_BLOCK = 32  # steps for which the basis grows at once


class NotFiniteError(MeasurementError):
    """A product with the map has NaN or infinite entries."""


@dataclass
class SquaredMap:
    """JᵀJ or JJᵀ, whichever is smaller, as products with columns; scaled by a power of two before it is squared.

    Attributes
    ----------
    push, pull : callable
        J times a (columns, r) tensor, and Jᵀ times a (rows, r) tensor, both of ``dtype`` on ``device``.
    shape : (int, int)
        (rows, columns) of J.
    exponent : int, optional
        Products are those of J·2^-exponent. None: chosen by ``rescale`` from the first products.
    record : callable, optional
        Makes of the whole product a function that may replay its kernels.
    push_once : callable, optional
        The same as ``push``, for a single product whose columns other maps are asked for too (``once``).
    """

    push: Product
    pull: Product
    shape: tuple[int, int]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    exponent: int | None = None
    record: Callable[[Callable[..., Any]], Recorded] | None = None
    push_once: Product | None = None
    _recorded: tuple[int, Recorded] | None = field(default=None, init=False, repr=False)

    @property
    def size(self) -> int:
        """N = min(rows, columns)."""
        return min(self.shape)

    @property
    def precision(self) -> str:
        """Name of the dtype."""
        return dtype_name(self.dtype)

    @property
    def presumed_error(self) -> float:
        """What the products are taken to err by where nothing is compared: 0 in float64, NaN where it is not known."""
        return 0.0 if self.dtype == torch.float64 else math.nan

    def rescale(self, columns: Tensor, *, once: bool = False) -> None:
        """Choose the exponent, once, so that J times these columns has entries near 1."""
        if self.exponent is None:
            first, _ = self._ways(once=once)
            self.exponent = int(exponent_near(_finite(first(columns.to(self.dtype)))))

    def _ways(self, *, once: bool = False) -> tuple[Product, Product]:
        if self.shape[1] <= self.shape[0]:
            return self.push_once if once and self.push_once is not None else self.push, self.pull
        return self.pull, self.push

    def one_way(self, columns: Tensor, *, once: bool = False) -> Tensor:
        """J times float64 columns (N, r) where J has no more columns than rows, Jᵀ times them otherwise; not scaled.

        ``once`` as in the method of that name.
        """
        first, _ = self._ways(once=once)
        return _finite(first(columns.to(self.dtype)))

    def __call__(self, columns: Tensor) -> Tensor:
        """The product with float64 columns (N, r), in float64."""
        self.rescale(columns)
        return _finite(*self._product(columns))

    def once(self, columns: Tensor) -> Tensor:
        """The same for columns that the maps of other cut points are multiplied with too."""
        self.rescale(columns, once=True)
        return _finite(*self._product(columns, once=True))

    def again(self, columns: Tensor) -> Tensor:
        """The same for one of many products of one size, whose kernels are worth recording."""
        self.rescale(columns)
        assert self.exponent is not None
        if self.record is None:
            return _finite(*self._product(columns))
        if self._recorded is None or self._recorded[0] != self.exponent:
            self._recorded = self.exponent, self.record(self._product)
        return _finite(*self._recorded[1]((), [columns]))

    def _product(self, columns: Tensor, *, once: bool = False) -> tuple[Tensor, Tensor]:
        """The product, and how many entries on the way are not finite."""
        assert self.exponent is not None
        # two factors, since 2^-exponent itself need be no normal number; a tensor of them could not be recorded
        half = -self.exponent // 2
        one, other = 2.0**half, 2.0 ** (-self.exponent - half)
        first, second = self._ways(once=once)
        found = first(columns.to(self.dtype))
        bad = (~torch.isfinite(found)).sum()
        found = second((found.to(torch.float64) * one * other).to(self.dtype))
        bad = torch.where(bad > 0, bad, (~torch.isfinite(found)).sum())
        return found.to(torch.float64) * one * other, bad


def _finite(values: Tensor, bad: Tensor | None = None) -> Tensor:
    count = int((~torch.isfinite(values)).sum() if bad is None else bad)
    if count:
        raise NotFiniteError(f"a product with the Jacobian has {count:,} NaN or infinite entries; no rank can be given")
    return values


def product_error(fast: SquaredMap, exact: SquaredMap, probes: int, generator: torch.Generator) -> float:
    """Bound on ‖A − A₆₄‖₂, in the units of the scaled products; it fails with probability 10^−probes.

    A's own products, as the Lanczos steps take them: a push that other maps share would say nothing of those.
    """
    drawn = torch.randn(fast.size, probes, generator=generator, dtype=torch.float64).to(fast.device)
    found = fast(drawn)
    exact.exponent = fast.exponent
    return norm_bound(found - exact.once(drawn).to(found.device))


class SymmetricMap(Protocol):
    """What the process multiplies with."""

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device | str: ...

    def again(self, columns: Tensor) -> Tensor:
        """The product with float64 columns (N, r), in float64."""


class LanczosProcess:
    """The process for r probes; ``extend`` takes further steps, and nothing is computed twice.

    Attributes
    ----------
    alpha, beta : torch.Tensor
        float64 on the CPU, shape (r, steps so far); ``beta[:, k]`` is the length of the residual after step k.
    steps : torch.Tensor
        Steps of each probe; fewer than the others where its Krylov space became invariant.
    squared_norms : torch.Tensor
        ‖g‖² of the Gaussian probes before they were normalised.
    removed : torch.Tensor
        ‖U‖_F of each probe.
    """

    def __init__(self, operator: SymmetricMap, probes: int, generator: torch.Generator) -> None:
        self.operator = operator
        starts = torch.randn(probes, operator.size, generator=generator, dtype=torch.float64)
        self.squared_norms = (starts**2).sum(1)
        self._next = (starts / self.squared_norms.sqrt()[:, None]).to(operator.device)
        self._basis: list[Tensor] = []
        self._scale = torch.zeros(probes, dtype=torch.float64, device=self._next.device)
        self._removed_squared = torch.zeros_like(self._scale)
        self._alpha: list[Tensor] = []
        self._beta: list[Tensor] = []
        self.steps = torch.zeros(probes, dtype=torch.int64)
        self.finished = torch.zeros(probes, dtype=torch.bool)

    @staticmethod
    def bytes_needed(size: int, probes: int, steps: int) -> int:
        """Of the basis and the vectors of one step; the products' own memory comes on top."""
        return 8 * size * probes * (math.ceil(steps / _BLOCK) * _BLOCK + 6)

    @staticmethod
    def steps_within(budget: int, size: int, probes: int) -> int:
        """The most steps whose ``bytes_needed`` are within the budget; below 1 where not one is."""
        return (budget // (8 * size * probes) - 6) // _BLOCK * _BLOCK if size else 1

    @property
    def alpha(self) -> Tensor:
        return torch.stack(self._alpha, 1).cpu()

    @property
    def beta(self) -> Tensor:
        return torch.stack(self._beta, 1).cpu()

    @property
    def removed(self) -> Tensor:
        return self._removed_squared.sqrt().cpu()

    @property
    def taken(self) -> int:
        return len(self._alpha)

    @property
    def held(self) -> int:
        """Bytes of the basis."""
        return sum(block.nbytes for block in self._basis)

    def forget(self) -> None:
        """Give up the basis, without which the process cannot go on; the coefficients stay."""
        self._basis.clear()

    def combined(self, probe: int, weights: Tensor) -> Tensor:
        """The basis of one probe times (its steps, count): (N, count)."""
        weights = weights.to(self._next)
        steps = len(weights)
        parts = [
            self._basis[block][probe, : min(_BLOCK, steps - start)].T @ weights[start : start + _BLOCK]
            for block, start in enumerate(range(0, steps, _BLOCK))
        ]
        return torch.stack(parts).sum(0)

    def extend(self, steps: int) -> None:
        """Go on until ``steps`` steps are taken, or every probe's Krylov space is invariant."""
        while self.taken < steps and not bool(self.finished.all()):
            self._step()

    def _step(self) -> None:
        k = self.taken
        probes, size = self._next.shape
        if len(self._basis) * _BLOCK <= k:
            self._basis.append(torch.zeros(probes, _BLOCK, size, dtype=torch.float64, device=self._next.device))
        self._basis[-1][:, k % _BLOCK] = self._next
        residual = self.operator.again(self._next.T).T.contiguous()
        found = self._orthogonalise(residual) + self._orthogonalise(residual)
        length = torch.linalg.vector_norm(residual, dim=1)
        alpha = found[:, k]
        if k:
            found[:, k - 1] -= self._beta[-1]  # by symmetry it is the length of the last residual
        scale = torch.maximum(self._scale, alpha.abs() + length)
        ends = length <= _INVARIANT * scale
        if k + 1 == size:
            ends = torch.ones_like(ends)
        removed = self._removed_squared + (found[:, :k] ** 2).sum(1) + torch.where(ends, length**2, 0.0)
        length = torch.where(ends, 0.0, length)
        following = residual * torch.where(ends, 0.0, 1 / torch.where(ends, 1.0, length))[:, None]
        steps, finished = self.steps + (~self.finished).to(torch.int64), self.finished | ends.cpu()
        # all at once, so that a step that runs out of memory leaves those before it as they are
        self._alpha.append(alpha)
        self._beta.append(length)
        self._scale, self._removed_squared, self._next = scale, removed, following
        self.steps, self.finished = steps, finished

    def _orthogonalise(self, residual: Tensor) -> Tensor:
        """Subtract the components along the basis; returns them, shape (r, steps)."""
        parts = [torch.bmm(block, residual[:, :, None]) for block in self._basis]
        for block, part in zip(self._basis, parts, strict=True):
            residual -= torch.bmm(block.transpose(1, 2), part).squeeze(2)
        return torch.cat(parts, 1).squeeze(2)
