"""Intrinsic dimension of features: of the curved set that they lie on, not of the flat one that holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankscope._base.checks import choice_of, count_of, refuse_unused
from rankscope._base.errors import DataError, NotInstalledError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.progress import Progress, reporting, watched
from rankscope._base.provenance import versions
from rankscope._base.records import ByValue, Record
from rankscope._base.text import counted
from rankscope.features.layer_rows import layer_rows
from rankscope.features.principal import from_first
from rankscope.features.reduction import Channels, Reduce, check_reduce
from rankscope.slicing import CutPointsLike
from rankscope.spectra.scale import scaled_norm
from rankscope.views.intrinsic_view import intrinsic_text, plot_intrinsic
from rankscope.views.noted import Noted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Estimator", "IntrinsicDimension", "LayerIntrinsic", "intrinsic_dimension"]

Estimator: TypeAlias = Literal["twonn", "mle"]

# The standard deviation of both estimators over 120 draws or more, of 300 to 1,000 Gaussian samples in 1 to 10
# dimensions with k from 2 to 50, was 1.1 to 1.5 times d/√(N(k − 1)), that of samples which share no distance as
# neighbours do.
_SHARED = 1.5
_TIED = 0.01  # share of samples with several nearest neighbours, above which features are not spread smoothly
_BESIDE = 3  # candidates beyond the k nearest, whose distances the search may confuse by rounding
_ENTRIES = 1 << 24  # of differences held at once: 128 MB


@dataclass(frozen=True, eq=False)
class LayerIntrinsic(ByValue):
    """The intrinsic dimension of one layer.

    Attributes
    ----------
    name : str
        The layer.
    value, error : float
        The estimate, and its standard error from the choice of samples; NaN where all neighbours are equally far.
    samples, width : int
        Distinct rows, and the length of each.
    duplicates : int
        Rows that equal an earlier one and were left out.
    """

    name: str
    value: float
    error: float
    samples: int
    width: int
    duplicates: int


@dataclass(frozen=True, eq=False, repr=False)
class IntrinsicDimension(Noted, Record):
    """Intrinsic dimension of every layer, in order of depth; ``facts`` name where it is not to be trusted.

    Attributes
    ----------
    method : str
        ``twonn`` or ``mle``.
    neighbours : int
        k, of each sample.
    layers : tuple of LayerIntrinsic
        One entry per layer.
    """

    method: Estimator
    neighbours: int
    layers: tuple[LayerIntrinsic, ...]
    facts: tuple[Fact, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def table(self) -> pd.DataFrame:
        """One row per layer."""
        import pandas as pd

        return pd.DataFrame([vars(layer) for layer in self.layers])

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """The dimension over depth, with twice its standard error as whiskers."""
        return plot_intrinsic([vars(layer) for layer in self.layers], self.method, ax=ax)

    def __str__(self) -> str:
        return intrinsic_text([vars(layer) for layer in self.layers], self.method, self.neighbours, self.facts)

    def __repr__(self) -> str:
        return str(self)


def intrinsic_dimension(
    source: Any,
    data: Any = None,
    *,
    method: Estimator = "twonn",
    neighbours: int | None = None,
    cut_points: CutPointsLike = "blocks",
    reduce: Reduce = "pool",
    channels: Channels = "auto",
    batch_size: int = 64,
    progress: bool | Progress | None = None,
) -> IntrinsicDimension:
    """Intrinsic dimension of the features of every layer, with its standard error, through scikit-dimension.

    ``twonn`` fits the ratio of the distances to the two nearest neighbours (Facco et al., Scientific Reports 2017; a
    tenth of the ratios, the largest, is left out). ``mle`` is the maximum likelihood of the distances to ``neighbours``
    of them (Levina and Bickel, NIPS 2004), averaged over samples as MacKay and Ghahramani (2005) showed. Both assume
    that the density hardly changes within the neighbourhood, and both fall below the dimension where N samples do not
    fill it: beyond 2·log₁₀ N (Eckmann and Ruelle 1992) a fact reports this. ``error`` does not include that bias.

    Parameters
    ----------
    source : nn.Module, array, or mapping of name → array
        Arrays are (N, …) with samples first.
    data : optional
        Inputs, when ``source`` is a model, as ``feature_rank`` takes them.
    method : "twonn" or "mle"
        The estimator.
    neighbours : int, optional
        Of ``mle``; default: 20. More lower the error and widen the neighbourhood.
    cut_points, reduce, channels, batch_size
        As in ``feature_rank``.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    NotInstalledError
        Without scikit-dimension (``pip install 'rankscope[geometry]'``).
    DataError
        Fewer distinct samples than neighbours + 2, NaN or complex rows.
    UsageError
        A model without data, neighbours beside ``twonn``.

    Examples
    --------
    >>> circle = torch.rand(500, 1) * 6.28
    >>> found = intrinsic_dimension(torch.cat([circle.cos(), circle.sin()], 1))  # doctest: +SKIP
    >>> round(found.layers[0].value)  # doctest: +SKIP
    1
    """
    choice_of(method, "method", ("twonn", "mle"))
    check_reduce(reduce, channels)
    if method == "twonn" and neighbours is not None:
        refuse_unused(["neighbours"], "with method='twonn', which uses two")
    k = 2 if method == "twonn" else 20 if neighbours is None else count_of(neighbours, "neighbours", least=2)
    estimate = _estimator(method, k)
    if data is not None and not isinstance(source, torch.nn.Module):
        refuse_unused(["data"], "where the source is no model")
    options: dict[str, Any] = {"cut_points": cut_points, "reduce": reduce, "channels": channels}
    rows, found = layer_rows(source, data, batch_size=count_of(batch_size, "batch_size"), progress=progress, **options)
    facts = list(found)
    layers = []
    with reporting(progress, "intrinsic dimension") as report:
        for name, part in watched(rows.items(), lambda _: 1, lambda: len(rows), report, "layers"):
            distinct = torch.unique(part, dim=0)
            duplicates = len(part) - len(distinct)
            if len(distinct) < k + 2:
                raise DataError(
                    f"{name}: {counted(len(distinct), 'distinct sample')}; {k} neighbours need {k + 2} or more"
                )
            distances = _nearest(distinct.to(torch.float64), k)
            tied = float((distances[:, 0] == distances[:, 1]).mean())
            value = estimate(distances) if distances[:, -1].max() > 0 and tied < 1 else float("nan")
            error = _SHARED * value / math.sqrt(len(distinct) * (k - 1))
            layers.append(LayerIntrinsic(name, value, error, len(distinct), part.shape[1], duplicates))
            facts += _facts(layers[-1], tied)
    return IntrinsicDimension(method, k, tuple(layers), tuple(facts), {"versions": versions()})


def _facts(layer: LayerIntrinsic, tied: float) -> list[Fact]:
    found = []
    if layer.duplicates:
        total = layer.samples + layer.duplicates
        found.append(
            Fact(FactKind.DUPLICATES_LEFT_OUT, {"name": layer.name, "count": layer.duplicates, "total": total})
        )
    if tied > _TIED:
        found.append(Fact(FactKind.TIED_NEIGHBOURS, {"name": layer.name, "share": tied}, caution=True))
    most = 2 * math.log10(layer.samples)
    if layer.value > most:
        values = {"name": layer.name, "value": layer.value, "samples": layer.samples, "most": most}
        found.append(Fact(FactKind.BEYOND_SAMPLES, values, caution=True))
    return found


def _estimator(method: Estimator, k: int) -> Any:
    """From the sorted distances (N, k) to the dimension."""
    try:
        from skdim.id import MLE, TwoNN
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != "skdim":
            raise
        raise NotInstalledError("scikit-dimension", "geometry") from error
    if method == "twonn":
        return lambda distances: float(TwoNN(dist=True).fit(distances[:, :2]).dimension_)

    def mle(distances: NDArray[np.float64]) -> float:
        places = np.zeros(distances.shape, dtype=int)  # who the neighbours are does not count
        given = {"precomputed_knn_arrays": (distances, places), "n_neighbors": k, "comb": "mle"}
        return float(MLE(K=min(k, len(distances) - 1)).fit(distances, **given).dimension_)

    return mle


def _nearest(rows: Tensor, k: int) -> NDArray[np.float64]:
    """Distances (N, k) to the k nearest of the other rows, ascending.

    A search that multiplies out |x − y|² loses the distance of near rows to rounding: of its candidates the distances
    are taken anew, from differences.
    """
    from sklearn.neighbors import NearestNeighbors

    rows, _ = from_first(rows)
    rows = rows - rows.mean(0)
    count = min(k + _BESIDE, len(rows) - 1)
    places = torch.from_numpy(NearestNeighbors(n_neighbors=count).fit(rows.numpy()).kneighbors(return_distance=False))
    step = max(_ENTRIES // (count * rows.shape[1]), 1)
    parts = [scaled_norm(rows[one] - rows[start : start + len(one), None]) for start, one in _split(places, step)]
    return torch.cat(parts).sort(dim=1).values[:, :k].numpy()


def _split(places: Tensor, step: int) -> list[tuple[int, Tensor]]:
    return [(start, places[start : start + step]) for start in range(0, len(places), step)]
