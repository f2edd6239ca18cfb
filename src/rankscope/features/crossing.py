"""Where accuracy over components crosses what is to be kept, in the data and in its resamples."""

from __future__ import annotations

import math

import torch

from rankscope._base.facts import Fact, FactKind
from rankscope.features.principal import PrincipalAxes
from rankscope.features.sweep import first_crossing

__all__ = ["first_dimension", "interval", "variance_kept"]


def first_dimension(
    counts: torch.Tensor, needed: float, basis: PrincipalAxes, *, without: float | None = None
) -> tuple[int, tuple[Fact, ...]]:
    """The first crossing, and what is to be known about it.

    ``without`` is what no component at all keeps, where the search starts there.
    """
    facts = []
    if without is not None and without >= needed - 1e-9:
        below = int((counts < needed - 1e-9).sum())
        return 0, ((Fact(FactKind.NOT_MONOTONE, {"count": below}),) if below else ())
    found = int(first_crossing(counts, torch.tensor(needed, dtype=torch.float64, device=counts.device)))
    width = len(basis.mean)
    if not found:  # at k = d the projection is the identity: only rounding can keep the last count below
        found = width
        facts.append(Fact(FactKind.FULL_WIDTH_ALONE))
    below = int((counts[found - 1 :] < needed - 1e-9).sum())
    if below:
        facts.append(Fact(FactKind.NOT_MONOTONE, {"count": below}))
    numerical = int((basis.variances > width * 2.0**-52 * basis.variances[0]).sum())
    if found > numerical:
        facts.append(Fact(FactKind.FEW_DIRECTIONS, {"directions": numerical}))
    return found, tuple(facts)


def interval(
    resampled: torch.Tensor, needed: torch.Tensor, width: int, *, without: torch.Tensor | None = None
) -> tuple[int, int] | None:
    """2.5% and 97.5% order statistics of the resamples' crossings; one that never crosses counts as d.

    ``without`` (R,) is what no component keeps in each, where the search starts there.
    """
    replicates = len(resampled)
    if not replicates:
        return None
    crossings = first_crossing(resampled, needed)
    crossings = torch.where(crossings == 0, width, crossings)
    if without is not None:
        crossings = torch.where(without >= needed - 1e-9, 0, crossings)
    ordered = crossings.sort().values
    return int(ordered[math.floor(0.025 * (replicates - 1))]), int(ordered[math.ceil(0.975 * (replicates - 1))])


def variance_kept(basis: PrincipalAxes, k: int) -> float:
    """Share of the variance in the first k components."""
    return float(basis.variances[:k].sum() / basis.variances.sum())
