"""Which accumulator a layer gets: covariance, all rows, or a sketch, by width, expected samples and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rankscope._base.errors import DataError, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope.features.feature_profile import LayerFeatures, layer_of_eigenvalues
from rankscope.features.moments import CentredMoments
from rankscope.features.precision import check_scale, underflow_roundoff, unit_roundoff
from rankscope.features.sketch import FrequentDirections, RowStore
from rankscope.views.phrases import gigabytes

__all__ = ["Accumulator", "choose_accumulator", "fair_shares", "layer_features"]

Accumulator = CentredMoments | RowStore | FrequentDirections
_LEAST_SKETCH = 8  # directions
_SINGLE = unit_roundoff(torch.float32)


def exact_bytes(width: int, samples: int | None, itemsize: int = 4) -> tuple[float, float]:
    """Bytes of a d × d covariance, and of all N rows with their Gram matrix (infinite where N is unknown)."""
    rows = float("inf") if samples is None else 1.0 * itemsize * samples * width + 8.0 * samples**2
    return 8.0 * width**2, rows


def least_bytes(width: int) -> float:
    """Bytes of the smallest sketch."""
    return 4 * 8.0 * _LEAST_SKETCH * width


def fair_shares(
    wanted: Mapping[str, float], memory: float, least: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Bytes a layer: first what each needs at ``least``, then equal shares of the rest to all that want more.

    >>> fair_shares({"a": 1, "b": 9, "c": 8}, 12)
    {'a': 1.0, 'c': 5.5, 'b': 5.5}
    """
    floor = {name: min(wanted[name], least[name]) if least else 0.0 for name in wanted}
    if sum(floor.values()) > memory:
        floor = dict.fromkeys(wanted, 0.0)
    memory -= sum(floor.values())
    more = {name: wanted[name] - floor[name] for name in wanted}
    shares = {}
    for given, name in enumerate(sorted(more, key=more.__getitem__)):
        share = min(more[name], memory / (len(more) - given))
        # what is wanted in full is given as it was asked for: a sum would be off by rounding
        shares[name] = float(wanted[name]) if share == more[name] else floor[name] + share
        memory -= share
    return shares


def choose_accumulator(
    name: str, width: int, *, samples: int | None, memory: float, itemsize: int = 4, device: torch.device | str = "cpu"
) -> tuple[Accumulator, tuple[Fact, ...]]:
    """The exact accumulator that fits in ``memory`` bytes, else a sketch, with the fact that it is one.

    A covariance takes 8·d² bytes and N·d² multiplications; all rows N·d entries, 8·N² bytes and N²·d multiplications.
    """
    covariance, rows = exact_bytes(width, samples, itemsize)
    if covariance <= memory and (samples is None or width <= samples or rows > memory):
        return CentredMoments(width, name=name).to(device), ()
    if rows <= memory:
        return RowStore(width, name=name), ()
    size = int(memory / (4 * 8.0 * width))
    if size < _LEAST_SKETCH:
        raise DataError(
            f"{name}: {width:,} dimensions: a covariance needs {gigabytes(covariance)}, all rows "
            f"{gigabytes(rows)}, and even a sketch of {_LEAST_SKETCH} directions {gigabytes(least_bytes(width))} of "
            f"{gigabytes(memory)} allowed; give a larger {parameter('memory_budget')}, or {parameter('reduce', 'pool')}"
        )
    size = min(size, 512)
    values = {"name": name, "width": width, "directions": size, "covariance": covariance, "memory": memory}
    found = Fact(FactKind.SKETCHED_LAYER, {**values, "rows": None if samples is None else rows})
    return FrequentDirections(width, size=size, name=name), (found,)


def layer_features(
    name: str,
    accumulated: Accumulator,
    reduce: str = "flatten",
    *,
    roundoff: float | None = None,
    magnitude: float | None = None,
    varies: bool | None = None,
    scale: float = 1.0,
) -> LayerFeatures:
    """The record of a layer whose rows have all come in; all zero where every row is the same.

    Parameters
    ----------
    roundoff : float, optional
        Unit roundoff of the dtype that the layer's output had; 0 where the features are to be taken as they are. By
        default that of the rows that came in.
    magnitude : float, optional
        ‖X‖²_F, where the output's entries were larger than those of the rows that came in (a mean over positions).
    varies : bool, optional
        Whether any two rows differ; by default it is read off the variance.
    scale : float
        What the rows were divided by before they came in.

    Raises
    ------
    DataError
        Fewer than two samples, or features whose squares leave float64's range.
    """
    count = int(accumulated.whole()[0]) if isinstance(accumulated, CentredMoments) else accumulated.count
    width = accumulated.width
    if count < 2:
        raise DataError(f"{name}: a covariance needs two samples; it got {count}")
    more: dict[str, Any] = {}
    if isinstance(accumulated, CentredMoments):
        _, mean, scatter = accumulated.whole()
        if not bool(torch.isfinite(scatter).all()):
            raise DataError(f"{name}: features so large that their squares overflow float64; scale them down")
        check_scale(max(float(mean.abs().max()), float(scatter.diagonal().max()) ** 0.5), name)
        values = torch.linalg.eigvalsh(scatter).clamp_min(0).cpu()
        raw = torch.linalg.eigvalsh(scatter + count * torch.outer(mean, mean)).clamp_min(0).cpu()
        # summed on the host from what is kept: moments of a GPU and the same read back give the same rounding
        level, method = float(mean.cpu().square().sum()), "covariance"
        trace = float(scatter.diagonal().cpu().sum())
        # the mean of equal numbers may be off by rounding: its square is what the variance of a constant feature is, of
        # each beside its own mean
        still = bool((scatter.diagonal() <= 1e-28 * (count - 1) * mean.square()).all())
    elif isinstance(accumulated, RowStore):
        check_scale(float(accumulated.rows.abs().max()), name)
        values, raw = (found.cpu() for found in accumulated.both_eigenvalues())
        level, method, trace = float(raw.sum()) / count, "gram", float(values.sum())
        still = trace == 0  # differences of equal rows are exact
    else:
        values, raw = accumulated.eigenvalues(), accumulated.uncentred_eigenvalues()
        level = float(accumulated.mean.square().sum()) if accumulated.mean is not None else 0.0
        method, trace = "sketch", accumulated.trace
        more = {"sketch_error": accumulated.error / (count - 1), "trace": trace}
        check_scale(max(level, trace / count) ** 0.5, name)
        still = trace <= 1e-28 * level * (count - 1)
    constant = still if varies is None else not varies
    if not constant and trace == 0:
        raise DataError(
            f"{name}: the samples differ by so much less than their largest feature that float64 cannot hold the "
            "squares; subtract the mean of each feature, or leave out those that do not vary"
        )
    if constant:
        values, more = torch.zeros_like(values), {}
    coarse = getattr(accumulated, "roundoff", 0.0) if roundoff is None else roundoff
    square = max(trace + count * level, getattr(accumulated, "magnitude", 0.0)) if magnitude is None else magnitude
    # numbers below the normal ones are not rounded relative to their size, but to the distance of the smallest
    underflow = underflow_roundoff(coarse, scale) * (count * width) ** 0.5
    return layer_of_eigenvalues(
        name,
        values.numpy(),
        width,
        count,
        uncentred=raw.numpy(),
        method=method,
        reduce=reduce,
        scale=scale,
        rounding=0.0 if constant and coarse <= _SINGLE else coarse * square**0.5 + underflow,
        **more,
    )
