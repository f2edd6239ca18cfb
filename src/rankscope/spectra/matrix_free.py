"""The rank of a map known only through products: exactly where the smaller side allows it, by Lanczos probes beyond.

The caller gives ``push`` and ``pull`` and nothing else of a model:

    operator = SquaredMap(map.push, map.pull, map.shape, map.dtype, map.device)
    exact = SquaredMap(wide.push, wide.pull, wide.shape, torch.float64, wide.device)   # map.in_dtype(torch.float64)
    found = spectrum_of_products(operator, Lanczos(), tolerance="paper", exact=exact, memory_budget=budget)

``found`` is a ``Spectrum`` or a ``SpectralDensity``; both have ``shape``, ``sigma_max`` and ``rank(tolerance)`` with
``value``, ``lower`` and ``upper``. ``jacobian_rank(..., columns="all", method=...)`` is this for each cut point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from rankscope._base.checks import MemoryBudget, budget_of, choice_of, count_of, number_of, seed_of
from rankscope._base.errors import UsageError, is_out_of_memory, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope.spectra.deflation import leading_part
from rankscope.spectra.density import AnySpectrum, SpectralDensity
from rankscope.spectra.exact import exact_bytes, exact_spectrum, matrix_bytes
from rankscope.spectra.lanczos import LanczosProcess, SquaredMap, product_error
from rankscope.spectra.quadrature import gauss_rule
from rankscope.spectra.tolerance import Tolerance, ToleranceLike, as_tolerance

__all__ = [
    "ERROR_PROBES",
    "LOOK",
    "WAYS",
    "Lanczos",
    "matrix_free",
    "may_be_too_rough",
    "spectrum_of_products",
    "too_rough",
    "way_for",
]

WAYS = ("auto", "exact", "lanczos")

_ROUND = 25  # steps between two looks at the bracket
_MOST = 2_000  # steps: the bracket falls like 1/steps, and the orthogonalisation grows with their square
_ROUGH = 1e-2  # relative thresholds above it are far above the error of float32 products, 1e-6·σ₁² squared
LOOK = 8  # steps after which σ₁ is known well enough for that comparison
_APART = 16  # times the error of the products: below it the bounds are wide however many steps are taken
_COUNTED = 512  # singular values above the threshold, up to which they are computed one by one
_OPEN = 100  # N may be that many times what float32 leaves open: float64 takes some ten times as long
ERROR_PROBES = 6  # products that are compared in both precisions
_FAILURE = 1e-6  # of the bounds of a rank
_EXPECTED = 200  # steps that a plan counts on where the bracket decides


@dataclass(frozen=True)
class Lanczos:
    """Settings of a matrix-free rank.

    Attributes
    ----------
    probes : int
        Gaussian probes, pushed at once. The standard error of a rank c is √(2c(N − c)/(N·probes)).
    steps : int or "auto"
        Products per probe; ``"auto"`` continues until the bracket at the requested tolerance is at most ``bracket``.
    bracket : float
        Width of the quadrature's bounds, as a share of N, at which ``"auto"`` stops.
    seed : int
        Of the probes.

    Raises
    ------
    UsageError
        For a value that cannot be used.

    >>> Lanczos(probes=4).steps
    'auto'
    """

    probes: int = 8
    steps: int | Literal["auto"] = "auto"
    bracket: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", count_of(self.probes, "probes", most=2**16))
        steps = (
            choice_of(self.steps, "steps", ["auto"])
            if isinstance(self.steps, str)
            else count_of(self.steps, "steps", most=2**20)
        )
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "bracket", number_of(self.bracket, "bracket", above=0, most=1))
        object.__setattr__(self, "seed", seed_of(self.seed))

    @property
    def expected_steps(self) -> int:
        """What a plan counts on: the steps themselves, or a usual number where the bracket decides."""
        return _EXPECTED if self.steps == "auto" else int(self.steps)


def _error(
    operator: SquaredMap, exact: SquaredMap | None, probes: int, generator: torch.Generator
) -> tuple[float, Fact | None]:
    """Bound on the products' error in scaled units, and what is said of it. Float64 products are taken as exact."""
    if exact is not None:
        found = product_error(operator, exact, probes, generator)
        return found, Fact(FactKind.PRODUCTS_CHECKED, {"probes": probes, "failure": 10.0**-probes})
    error = operator.presumed_error
    said = Fact(FactKind.PRODUCTS_UNCHECKED, {"dtype": operator.precision}, caution=True)
    return error, said if math.isnan(error) else None


@dataclass(frozen=True)
class _Begun:
    """The first steps of a process, and the bound on its products' error: looked at before it goes on."""

    process: LanczosProcess
    generator: torch.Generator
    error: float
    said: Fact | None

    @classmethod
    def of(cls, operator: SquaredMap, settings: Lanczos, exact: SquaredMap | None, error_probes: int) -> _Begun:
        generator = torch.Generator().manual_seed(settings.seed)
        process = LanczosProcess(operator, settings.probes, generator)
        return cls(process, generator, *_error(operator, exact, error_probes, generator))


def matrix_free(
    operator: SquaredMap,
    settings: Lanczos = Lanczos(),
    *,
    tolerance: ToleranceLike = "paper",
    exact: SquaredMap | None = None,
    error_probes: int = ERROR_PROBES,
    memory_budget: MemoryBudget = None,
    failure: float = _FAILURE,
) -> SpectralDensity:
    """Lanczos coefficients of random probes, of which every tolerance can be read.

    Parameters
    ----------
    operator : SquaredMap
        Products with the Jacobian, in float32 or float64.
    tolerance
        The one at which ``steps="auto"`` looks at the bracket.
    exact : SquaredMap, optional
        The same map in float64: ``error_probes`` products bound the error of ``operator``'s, which fails with
        probability 10^−error_probes. Without it float32 ranks are not certified.
    failure : float
        Probability that the bounds of a rank miss.

    Raises
    ------
    UsageError
        When the memory budget does not hold one step.
    MeasurementError
        When a product is not finite.
    """
    tol = as_tolerance(tolerance)
    failure = number_of(failure, "failure", above=0, most=0.5)
    budget = budget_of(memory_budget, torch.device(operator.device))
    size, probes = operator.size, settings.probes
    if LanczosProcess.steps_within(budget, size, probes) < 1:
        least = LanczosProcess.bytes_needed(size, probes, 1)
        raise UsageError(
            f"{parameter('memory_budget')} is {budget:,} bytes; {probes} Lanczos probes of {size:,} entries need "
            f"{least:,}, or give fewer {parameter('probes')}"
        )
    return _density(_Begun.of(operator, settings, exact, error_probes), operator, settings, tol, budget, failure)


def _density(
    begun: _Begun, operator: SquaredMap, settings: Lanczos, tol: Tolerance, budget: int, failure: float
) -> SpectralDensity:
    """The process taken on to its end; the budget holds at least one step, and what steps it has taken."""
    process, generator, error = begun.process, begun.generator, begun.error
    facts = () if begun.said is None else (begun.said,)
    fits = LanczosProcess.steps_within(budget, operator.size, settings.probes)

    def read(*more: Fact) -> SpectralDensity:
        return SpectralDensity(
            shape=operator.shape,
            alpha=process.alpha.numpy(),
            beta=process.beta.numpy(),
            steps=process.steps.numpy().copy(),
            squared_norms=process.squared_norms.numpy(),
            removed=process.removed.numpy(),
            exponent=operator.exponent or 0,
            dtype=operator.precision,
            product_error=error,
            failure=failure,
            seed=settings.seed,
            facts=(*facts, *more),
        )

    auto = settings.steps == "auto"
    asked = _MOST if settings.steps == "auto" else settings.steps
    limit, ran_out = min(asked, fits), False
    while True:
        try:
            process.extend(min((process.taken // _ROUND + 1) * _ROUND, limit) if auto else limit)
        except RuntimeError as raised:
            if not is_out_of_memory(raised) or not process.taken:
                raise
            limit, ran_out = process.taken, True  # the coefficients of these are whole
        wide = read().rank(tol).bracket
        ended = bool(process.finished.all())
        if ended or process.taken >= limit or (auto and wide <= settings.bracket):
            break
    reason = "memory" if limit < asked else ("limit" if auto else "asked")
    reason = "ran out" if ran_out else reason
    reason = "invariant" if ended else ("bracket" if auto and wide <= settings.bracket else reason)
    values = {"steps": process.taken, "reason": reason, "bracket": wide, "tolerance": tol.name}
    cut = reason in ("memory", "ran out", "limit")
    stopped = Fact(FactKind.LANCZOS_STEPS, {**values, "asked": settings.bracket if auto or cut else None}, caution=cut)
    found = read(stopped, Fact(FactKind.NOT_FROM_MOMENTS, {"names": ("effective_rank",)}))
    return _with_leading(found, process, operator, tol, settings, generator, budget)


def _with_leading(
    found: SpectralDensity,
    process: LanczosProcess,
    operator: SquaredMap,
    tolerance: Tolerance,
    settings: Lanczos,
    generator: torch.Generator,
    budget: int,
) -> SpectralDensity:
    """The same with its leading eigenvalues one by one, where so few are above the threshold that probes say little."""
    rank = found.rank(tolerance)
    if not rank.certified or rank.lower == rank.upper or rank.value > _COUNTED:
        return found
    threshold = float(np.ldexp(rank.threshold, -found.exponent)) ** 2
    try:
        part = leading_part(
            process,
            operator,
            threshold,
            generator=generator,
            product_error=found.product_error,
            failure=found.failure / 4,
            products=2 * settings.probes * settings.expected_steps + 4 * _COUNTED,
            budget=budget,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return replace(found, facts=(*found.facts, Fact(FactKind.LEADING_NO_ROOM)))
    if part is None:
        return found
    counted = Fact(FactKind.LEADING_COUNTED, {"count": len(part.values)})
    return replace(
        found,
        leading=part.values,
        residual=part.residual,
        rest=part.rest,
        leading_error=part.error,
        facts=(*found.facts, counted),
    )


def spectrum_of_products(
    operator: SquaredMap,
    method: Lanczos | str = "auto",
    *,
    tolerance: ToleranceLike = "paper",
    exact: SquaredMap | None = None,
    dense: tuple[SquaredMap, SquaredMap] | None = None,
    memory_budget: MemoryBudget = None,
) -> AnySpectrum:
    """The spectrum by ``"exact"``, ``"lanczos"``, ``Lanczos(...)`` or ``"auto"``.

    ``"auto"`` takes the exact way where ``exact_bytes`` are within the budget. Every way takes it where the exact
    products are no more than the probes' own. ``dense`` are float64 products, and what those are compared with: for
    thresholds at which the error of float32 products leaves a rank open.
    """
    budget = budget_of(memory_budget, torch.device(operator.device))
    if way_for(operator.shape, method, budget, operator.dtype) == "exact":
        return _exactly(operator, tolerance, exact, dense, budget, asked=method == "exact")
    settings, tol = method if isinstance(method, Lanczos) else Lanczos(), as_tolerance(tolerance)
    if dense is not None and may_be_too_rough(operator.shape, operator.dtype, tol):
        begun = _Begun.of(operator, settings, exact, ERROR_PROBES)
        if _too_rough(operator, begun, tol):
            begun.process.forget()
            found = matrix_free(dense[0], settings, tolerance=tol, exact=dense[1], memory_budget=memory_budget)
            said = Fact(FactKind.PRODUCTS_IN_FLOAT64, {"tolerance": tol.name})
            return replace(found, dtype=operator.precision, facts=(*found.facts, said))
        fits = LanczosProcess.steps_within(budget, operator.size, settings.probes)
        if begun.process.taken <= min(settings.expected_steps, fits):
            return _density(begun, operator, settings, tol, budget, _FAILURE)
        begun.process.forget()  # fewer steps are asked for, or have room
    return matrix_free(operator, settings, tolerance=tol, exact=exact, memory_budget=memory_budget)


def _exactly(
    operator: SquaredMap,
    tolerance: ToleranceLike,
    exact: SquaredMap | None,
    dense: tuple[SquaredMap, SquaredMap] | None,
    budget: int,
    *,
    asked: bool,
) -> AnySpectrum:
    """In float64 where the exact way was asked for. Otherwise float32 serves where it leaves hardly a rank open."""
    if dense is None:
        return exact_spectrum(operator, exact=exact, budget=budget)
    if not asked and matrix_bytes(operator.shape, operator.dtype) <= budget:
        found = exact_spectrum(operator, exact=exact, budget=budget)
        rank = found.rank(tolerance)
        if rank.certified and rank.upper - rank.lower <= operator.size // _OPEN:
            return found
    # the dtype decides the threshold, which stays that of the measurement
    return replace(exact_spectrum(dense[0], exact=dense[1], budget=budget), dtype=operator.precision)


def may_be_too_rough(shape: tuple[int, int], dtype: torch.dtype, tolerance: Tolerance) -> bool:
    """Whether the threshold alone leaves it open; a few steps then decide."""
    return tolerance.relative(shape, dtype) <= _ROUGH and dtype != torch.float64 and min(shape) > 0


def too_rough(error: float, top: float, operator: SquaredMap, tol: Tolerance) -> bool:
    """Whether the error of float32 products is of the size of the squared threshold; ``top`` is about ‖JᵀJ‖₂."""
    rtol = tol.relative(operator.shape, operator.dtype)
    absolute = float(np.ldexp(tol.atol or 0.0, -(operator.exponent or 0)))
    return bool(error * _APART > max(rtol * math.sqrt(max(top, 0.0)), absolute) ** 2 > 0)


def _too_rough(operator: SquaredMap, begun: _Begun, tol: Tolerance) -> bool:
    """By a few steps with them."""
    process = begun.process
    process.extend(LOOK)
    alpha, beta = process.alpha.numpy(), process.beta.numpy()
    top = max(gauss_rule(alpha[p, :m], beta[p, : m - 1])[0][0] for p, m in enumerate(process.steps.tolist()))
    return too_rough(begun.error, top, operator, tol)


def way_for(
    shape: tuple[int, int], method: Lanczos | str, budget: int, dtype: torch.dtype = torch.float32
) -> Literal["exact", "lanczos"]:
    """How a spectrum of so many rows and columns is computed within ``budget`` bytes. It depends on nothing measured.

    Raises
    ------
    UsageError
        When the budget holds neither what the method needs nor, of probes, a single step.

    >>> square = (4096, 4096)
    >>> way_for(square, "auto", 2**32), way_for((200_000, 150_528), "auto", 2**32), way_for(square, Lanczos(), 2**32)
    ('exact', 'lanczos', 'lanczos')
    >>> way_for((1000, 150_528), Lanczos(), 2**32)
    'exact'
    """
    settings = method if isinstance(method, Lanczos) else Lanczos()
    name = "lanczos" if isinstance(method, Lanczos) else choice_of(method, "method", WAYS)
    size, need = min(shape), exact_bytes(min(shape))
    if name == "exact" and need > budget:
        raise UsageError(
            f"{parameter('memory_budget')} is {budget:,} bytes; the exact spectrum of a side of {size:,} "
            f"needs {need:,}; give {parameter('method', 'lanczos')}"
        )
    products = size if matrix_bytes(shape, dtype) <= budget else 2 * size
    few = products <= 2 * settings.probes * settings.expected_steps and need <= budget
    if name == "exact" or few or (name == "auto" and need <= budget):
        return "exact"
    least = LanczosProcess.bytes_needed(size, settings.probes, 1)
    if least > budget:
        raise UsageError(
            f"{parameter('memory_budget')} is {budget:,} bytes; {settings.probes} Lanczos probes of {size:,} entries "
            f"need {least:,}, or give fewer {parameter('probes')}"
        )
    return "lanczos"
