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
    """Mean (d,), axes (d × d, one a column, by descending variance) and their variances (d,), all float64.

    Variances are divided by N − 1, and by the square of ``unit``: 1 for all but extreme rows, else the power of two
    that rows were divided by so that float64 holds their squares.
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
    x = rows.to(torch.float64)
    half = 1.0 if float(x.abs().max()) < _HALF else 0.5  # the difference of the largest numbers would overflow
    x = half * x - half * x[:1]
    unit = power_of_two(float(x.abs().max()))
    return x / unit, unit / half


def scatter_of(rows: torch.Tensor, *, block: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, scatter Σ(x − mean)(x − mean)ᵀ) of (N, d) rows in float64, ``block`` rows converted at a time."""
    width = rows.shape[1]
    # differences from the first row: the mean of large numbers that differ little is off by their rounding
    origin = rows[0].to(torch.float64)
    mean = torch.zeros(width, dtype=torch.float64, device=rows.device)
    for part in rows.split(block):
        mean += (part.to(torch.float64) - origin).sum(0)
    mean /= len(rows)
    scatter = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for part in rows.split(block):
        centred = part.to(torch.float64) - origin - mean
        scatter.addmm_(centred.T, centred)
    return origin + mean, scatter


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
        raise DataError(f"{name} are constant: all {len(rows)} samples are the same; there is no principal axis")
    unit = power_of_two(float(rows.abs().max()))
    mean, scatter = scatter_of(rows if unit == 1 else rows / unit)
    values, vectors = torch.linalg.eigh(scatter)
    return PrincipalAxes(mean * unit, vectors.flip(1), values.clamp_min(0).flip(0) / (len(rows) - 1), unit)
