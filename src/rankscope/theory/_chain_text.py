"""Random chains as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankscope.spectra import EPS32

if TYPE_CHECKING:
    from rankscope.theory.profile import ChainProfile

__all__ = ["chain_text"]


def chain_text(profile: ChainProfile) -> str:
    """Header, ranks and predictions at a dozen depths, and what has to be known to read them."""
    lines = [
        f"{profile.title}, {len(profile.runs)} seed{'s' * (len(profile.runs) > 1)}, {profile.dtype}, "
        f"tolerance {profile.tolerance}, {profile.samples} samples, {profile.seconds:.1f} s",
        f"{'depth':>6} {'Jacobian rank':>16} {'predicted':>10} {'features (PCA)':>16} {'predicted':>10}",
    ]
    shown = sorted({1, profile.depth, *np.linspace(1, profile.depth, 11).round().astype(int).tolist()})
    ranks, dimensions = profile.jacobian_ranks, profile.feature_dimensions
    for k in shown:
        cells = [_spread(ranks[:, k - 1]), _number(profile.predicted[0][k - 1])]
        cells += [_spread(dimensions[:, k - 1]), _number(profile.predicted[1][k - 1])]
        lines.append(f"{k:>6} {cells[0]:>16} {cells[1]:>10} {cells[2]:>16} {cells[3]:>10}")
    lines.append(
        f"prediction: {profile.prediction}" + (f" ({profile.prediction_range})" if profile.prediction_range else "")
    )
    if profile.prediction_range and not profile.in_range:
        lines.append(f"width {profile.width} is OUTSIDE the range in which the prediction was measured")
    for run in profile.runs:
        if run.stopped_at:
            lines.append(f"seed {run.seed}: stopped at layer {run.stopped_at}, all of |J| below {EPS32:.3g}")
        for layer, rank in run.singular[:3]:
            drop = ", and rank drops there" if profile.residual is None else ""
            singular = f"singular to float64 precision, of rank {rank}{drop}"
            lines.append(f"seed {run.seed}: the weights of layer {layer} are {singular}")
        if len(run.singular) > 3:
            lines.append(f"seed {run.seed}: and those of {len(run.singular) - 3} more layers")
    if profile.rises:
        at = ", ".join(f"layer {depth} (seed {seed})" for seed, depth in profile.rises[:4])
        lines.append(f"the numerical rank rose at {at}{' and more' if len(profile.rises) > 4 else ''}")
    return "\n".join(lines)


def _spread(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return "-"
    low, high = int(known.min()), int(known.max())
    return f"{low}" if low == high else f"{known.mean():.1f} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "-"
