"""Principal axes: eigenvectors of the centred covariance, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankscope._base.errors import DataError
from rankscope.spectra.scale import power_of_two

__all__ = ["PrincipalAxes", "from_first", "principal_axes", "scatter_of"]

_HALF = 2.0**1022  # differences of two numbers below this are numbers


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Mean (d,), axes (d × d, one per column, by descending variance) and their variances (d,), all float64.

    Variances are divided by N − 1, and by the square of ``unit``: 1 for all but extreme spreads, else a power of two
    so that float64 holds their squares.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    variances: torch.Tensor
    unit: float = 1.0


def from_first(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(N, d) float64 differences from the first row, divided by a power of two, and that.

    For measures that depend on neither the mean nor the scale: a mean that is large beside the spread leaves no digits
    to it, and squares of extreme spreads leave float64. Columns that do not vary are exactly zero.

    >>> from_first(torch.tensor([[1e6, 7.0], [1e6 + 0.5, 7.0]]))[0].tolist()
    [[0.0, 0.0], [0.5, 0.0]]
    """
    half = _half(rows)
    x = _apart(rows, rows[:1], half)
    unit = power_of_two(float(x.abs().max()))
    return x / unit, unit / half


def _half(rows: torch.Tensor) -> float:
    """What to multiply by, so that differences of the largest numbers do not overflow."""
    return 1.0 if float(rows.abs().max()) < _HALF else 0.5


def _apart(part: torch.Tensor, origin: torch.Tensor, half: float) -> torch.Tensor:
    return half * part.to(torch.float64) - half * origin.to(torch.float64)


def scatter_of(rows: torch.Tensor, *, block: int = 4096) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(mean, scatter Σ(x − mean)(x − mean)ᵀ/unit², unit) of (N, d) rows in float64, ``block`` rows at a time.

    ``unit`` is a power of two, of the size of the spread: that of the features themselves says nothing of its squares.
    """
    width, half = rows.shape[1], _half(rows)
    # differences from the first row: the mean of large numbers that differ little is off by their rounding
    origin = rows[:1]
    unit = power_of_two(max(float(_apart(part, origin, half).abs().max()) for part in rows.split(block)))
    mean = torch.zeros(width, dtype=torch.float64, device=rows.device)
    for part in rows.split(block):
        mean += (_apart(part, origin, half) / unit).sum(0)
    mean /= len(rows)
    scatter = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for part in rows.split(block):
        centred = _apart(part, origin, half) / unit - mean
        scatter.addmm_(centred.T, centred)
    unit /= half
    return origin[0].to(torch.float64) + mean * unit, scatter, unit


def principal_axes(rows: torch.Tensor, *, name: str = "features") -> PrincipalAxes:
    """PCA of (N, d) rows by the eigenvectors of their float64 covariance; all d axes, also those without variance.

    Raises
    ------
    DataError
        When every sample is the same: no axis is then better than another.

    Examples
    --------
    >>> principal_axes(torch.tensor([[0.0, 0.0], [2.0, 0.0]])).variances
    tensor([2., 0.], dtype=torch.float64)
    """
    if len(rows) < 2 or bool((rows == rows[:1]).all()):
        same = f"all {len(rows)} samples are the same" if len(rows) > 1 else "there is one sample"
        raise DataError(f"{name} are constant: {same}, which has no principal axis")
    mean, scatter, unit = scatter_of(rows)
    values, vectors = torch.linalg.eigh(scatter)
    return PrincipalAxes(mean, vectors.flip(1), values.clamp_min(0).flip(0) / (len(rows) - 1), unit)
