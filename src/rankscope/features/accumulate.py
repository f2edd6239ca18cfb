"""Which accumulator a layer gets: covariance, all rows, or a sketch, by width, expected samples and memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rankscope._base.errors import DataError
from rankscope.features.feature_profile import LayerFeatures, layer_of_eigenvalues
from rankscope.features.moments import CentredMoments
from rankscope.features.sketch import FrequentDirections, RowStore

__all__ = ["Accumulator", "choose_accumulator", "fair_shares", "layer_features"]

Accumulator = CentredMoments | RowStore | FrequentDirections


def exact_bytes(width: int, samples: int | None, itemsize: int = 4) -> tuple[float, float]:
    """Bytes of a d × d covariance, and of all N rows with their Gram matrix (infinite where N is unknown)."""
    rows = float("inf") if samples is None else 1.0 * itemsize * samples * width + 8.0 * samples**2
    return 8.0 * width**2, rows


def fair_shares(wanted: Mapping[str, float], memory: float) -> dict[str, float]:
    """Bytes a layer: what it wants where that is no more than an equal share of what is left, else that share.

    >>> fair_shares({"a": 1, "b": 9, "c": 8}, 12)
    {'a': 1, 'c': 5.5, 'b': 5.5}
    """
    shares = {}
    for given, name in enumerate(sorted(wanted, key=wanted.__getitem__)):
        shares[name] = min(wanted[name], memory / (len(wanted) - given))
        memory -= shares[name]
    return shares


def choose_accumulator(
    name: str, width: int, *, samples: int | None, memory: float, itemsize: int = 4, device: torch.device | str = "cpu"
) -> tuple[Accumulator, str]:
    """The exact accumulator that fits in ``memory`` bytes, else a sketch; with a sentence on what that costs, or "".

    A covariance takes 8·d² bytes and N·d² multiplications; all rows N·d entries, 8·N² bytes and N²·d multiplications.
    """
    covariance, rows = exact_bytes(width, samples, itemsize)
    if covariance <= memory and (samples is None or width <= samples or rows > memory):
        return CentredMoments(width, name=name).to(device), ""
    if rows <= memory:
        return RowStore(width, name=name), ""
    size = int(memory / (4 * 8.0 * width))
    if size < 8:
        raise DataError(
            f"{name}: {width:,} dimensions: a covariance needs {covariance / 1e9:,.1f} GB, all rows "
            f"{rows / 1e9:,.1f} GB, and even a sketch of 8 directions {32 * 8 * width / 1e9:,.1f} GB of "
            f"{memory / 1e9:,.1f} GB allowed; "
            'give more memory=, or reduce="pool"'
        )
    size = min(size, 512)
    note = (
        f"{name}: {width:,} dimensions: a covariance needs {covariance / 1e9:,.1f} GB"
        + ("" if samples is None else f", all rows {rows / 1e9:,.1f} GB")
        + f" of {memory / 1e9:,.1f} GB allowed: sketched with {size} directions; read pca_bounds and "
        "sketch_error, and take the soft ranks for those of the sketch"
    )
    return FrequentDirections(width, size=size, name=name), note


def layer_features(name: str, accumulated: Accumulator, reduce: str = "flatten") -> LayerFeatures:
    """The record of a layer whose rows have all come in.

    Raises
    ------
    DataError
        Fewer than two samples, or features that are the same for every sample.
    """
    count = int(accumulated.state()[0]) if isinstance(accumulated, CentredMoments) else accumulated.count
    width = accumulated.width
    if count < 2:
        raise DataError(f"{name}: a covariance needs two samples; {count} came in")
    if isinstance(accumulated, CentredMoments):
        _, mean, scatter = accumulated.state()
        if not bool(torch.isfinite(scatter).all()):
            raise DataError(f"{name}: features so large that their squares overflow float64; scale them down")
        values = torch.linalg.eigvalsh(scatter).clamp_min(0)
        found = layer_of_eigenvalues(name, values.cpu().numpy(), width, count, method="covariance", reduce=reduce)
        level = float(mean.square().sum())
    elif isinstance(accumulated, RowStore):
        values = accumulated.eigenvalues()
        found = layer_of_eigenvalues(name, values.cpu().numpy(), width, count, method="gram", reduce=reduce)
        level = float(accumulated.rows.double().square().sum() / count)
    else:
        values = accumulated.eigenvalues()
        found = layer_of_eigenvalues(
            name,
            values.numpy(),
            width,
            count,
            method="sketch",
            reduce=reduce,
            sketch_error=accumulated.error / (count - 1),
            trace=accumulated.trace,
        )
        level = float(accumulated.mean.square().sum()) if accumulated.mean is not None else 0.0
    # the mean of equal float64 numbers is off by rounding; its square is what a constant layer's variance can be
    if found.trace <= 1e-28 * level or found.trace == 0:
        raise DataError(
            f"{name}: the features are constant: all {count} samples give the same; check that inputs differ and that "
            "the layer lies on their way"
        )
    return found
