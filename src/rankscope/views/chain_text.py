"""Random chains as a table for the terminal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankscope._base.text import one_line
from rankscope.views.chains import ChainView
from rankscope.views.phrases import bounds, counted

__all__ = ["chain_text"]


def chain_text(chains: ChainView) -> str:
    """Header, ranks and predictions at a dozen depths, and what has to be known to read them."""
    lines = [
        f"{one_line(chains.title)}, {counted(len(chains.seeds), 'seed')}, {chains.dtype}, "
        f"tolerance: {chains.tolerance}, {counted(chains.samples, 'sample')}, {chains.seconds:.1f} s",
        f"{'depth':>6} {'Jacobian rank':>22} {'predicted':>10} {'features (PCA)':>22} {'predicted':>10}",
    ]
    shown = sorted({1, chains.depth, *np.linspace(1, chains.depth, 11).round().astype(int).tolist()})
    ranks, dimensions = chains.ranks, chains.dimensions
    for k in shown:
        cells = [_spread(ranks[:, k - 1]), _number(chains.predicted[0][k - 1])]
        cells += [_spread(dimensions[:, k - 1]), _number(chains.predicted[1][k - 1])]
        lines.append(f"{k:>6} {cells[0]:>22} {cells[1]:>10} {cells[2]:>22} {cells[3]:>10}")
    lines.append(f"prediction: {chains.law}" + (f" ({chains.law_range})" if chains.law_range else ""))
    if chains.law_range and not chains.in_range:
        lines.append(f"width {chains.width:,} is OUTSIDE the range in which the prediction was tested")
    for seed, stop, singular in zip(chains.seeds, chains.stops, chains.singular, strict=True):
        if stop:
            lines.append(f"seed {seed}: stopped at layer {stop}, all of |J| below {chains.floor:.3g}")
        for layer, rank in singular[:3]:
            drop = "" if chains.residual else ", and rank drops there"
            how = f"singular to float64 precision, of rank {rank:,}{drop}"
            lines.append(f"seed {seed}: the weights of layer {layer} are {how}")
        if len(singular) > 3:
            lines.append(f"seed {seed}: so are those of {counted(len(singular) - 3, 'more layer')}")
    if chains.rises:
        at = ", ".join(f"layer {depth} (seed {seed})" for seed, depth in chains.rises[:4])
        lines.append(f"the numerical rank rose at {at}{' and more' if len(chains.rises) > 4 else ''}")
    return "\n".join(lines)


def _spread(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return "-"
    low, high = int(known.min()), int(known.max())
    return f"{low:,}" if low == high else f"{known.mean():,.1f} {bounds(low, high)}"


def _number(value: float) -> str:
    return f"{value:,.1f}" if np.isfinite(value) else "-"
