"""The records of ``feature_rank``: one layer's covariance spectrum with its dimensions, and a profile of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from rankscope._base.encoding import plain
from rankscope._base.errors import UsageError, nearest
from rankscope._base.facts import Fact
from rankscope._base.records import ByValue, Record
from rankscope.features.class_record import ClassFeatures
from rankscope.spectra import EPS32, RankEstimate, Spectrum, Tolerance, measures
from rankscope.views.feature_figure import plot_layers
from rankscope.views.feature_text import layers_text
from rankscope.views.noted import Noted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["DIMENSIONS", "FeatureProfile", "LayerFeatures", "Limit"]

Limit: TypeAlias = Literal["constant", "sketch", "precision", "samples", "network"]

# Share of the N − 1 directions that N samples can span, above which the samples and not the network set the number
_LIMIT = 0.9
# Shares of the variance whose dimensions stand in the table
_SHARES = (0.9, 0.95, 0.99)
_BY_CLASS = fields(ClassFeatures)
# Share of the dimension that its bounds may leave open before the result says that the dtype limits it
_WIDE = 0.05


@dataclass(frozen=True, eq=False)
class LayerFeatures(ByValue):
    """How many dimensions the features of one layer have.

    Attributes
    ----------
    name : str
        The cut point.
    width, samples : int
        d and N: length and number of the rows (positions count as rows under ``reduce="positions"``).
    covariance : Spectrum
        Eigenvalues of the d × d centred covariance (divided by N − 1); those beyond N − 1 are zero.
    matrix : Spectrum
        Singular values of the centred N × d feature matrix, √((N − 1)·λ): all soft ranks are read off this one.
    method : str
        ``covariance`` (d × d), ``gram`` (N × N, the same eigenvalues) or ``sketch`` (with ``sketch_error``).
    sketch_error : float
        Upper bound on what the sketch takes off each eigenvalue of the covariance; 0 for the exact methods.
    trace : float
        Sum of all eigenvalues, exact also for a sketch.
    rankme : float
        RankMe of the feature matrix as it is, not centred (Garrido et al. 2023).
    rounding : float
        Bound on what storing the features in their dtype can have moved each singular value of ``matrix`` by: the
        unit roundoff times ‖X‖_F, and half the distance of the dtype's smallest numbers times √(N·d). 0 for
        ``local_feature_rank``, whose definition takes the rounding for part of the features.
    scale : float
        Power of two that the features were divided by before squaring: 1 unless they are so large or so small that
        float64 could not hold their squares. Eigenvalues, ``matrix`` and ``rounding`` are of the divided ones.
    by_class : ClassFeatures, optional
        Neural collapse and class ranks, where labels were given.
    counted : int
        N of the threshold eps32·N·λ_1: 0 for the width d, as the paper's text has it, else the number itself, which is
        min(samples, d) for ``local_feature_rank``, as in the paper's code.
    """

    name: str
    width: int
    samples: int
    covariance: Spectrum
    matrix: Spectrum
    method: str = "covariance"
    reduce: str = "flatten"
    sketch_error: float = 0.0
    trace: float = 0.0
    rankme: float = 0.0
    rounding: float = 0.0
    scale: float = 1.0
    by_class: ClassFeatures | None = None
    counted: int = 0

    @property
    def pca_dimension(self) -> int:
        """#{λ_i ≥ eps32·N·λ_1} over the N eigenvalues of the covariance (paper §6.1): ``counted``, or d."""
        return self._counting().value

    def _counting(self) -> RankEstimate:
        return self.covariance.rank(Tolerance(rtol=EPS32 * (self.counted or self.width)))

    @property
    def pca_bounds(self) -> tuple[int, int]:
        """Between what the dimension must lie, given the sketch's error and the rounding of the features' dtype."""
        if self.constant:  # in half precision, what varies little about its mean is rounded to a constant
            return 0, min(self.width, self.samples - 1) if self.rounding else 0
        exact = self._counting()
        if not self.sketch_error and not self.rounding:
            return exact.lower, exact.upper
        variances, tau = self.covariance.singular_values, exact.threshold
        relative = tau / float(variances[0])
        # rounding moves every σ, and σ_1 in the threshold √relative·σ_1, by at most itself
        slack = self.rounding * (1 + relative**0.5) / max(self.samples - 1, 1) ** 0.5
        top = variances[0] + self.sketch_error
        known = int((variances.clip(0) ** 0.5 >= (relative * top) ** 0.5 + slack).sum())
        # eigenvalues that were not kept lie below the sketch's error
        open_above = int(((variances + self.sketch_error) ** 0.5 >= tau**0.5 - slack).sum())
        most = min(self.width, self.samples - 1)
        return min(known, exact.lower), max(min(open_above, most), exact.value)

    @property
    def constant(self) -> bool:
        """Whether every sample has the same features; every dimension is then 0."""
        return self.trace == 0

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of σ/‖σ‖₁, σ of the centred feature matrix (Roy and Vetterli 2007)."""
        return self.matrix.effective_rank

    @property
    def participation_ratio(self) -> float:
        """(Σλ)²/Σλ² over the covariance's eigenvalues (Gao et al. 2017)."""
        return self.matrix.participation_ratio

    @property
    def stable_rank(self) -> float:
        """‖X‖²_F/‖X‖²₂ = Σλ/λ_1 of the centred feature matrix (Rudelson and Vershynin 2007)."""
        top = float(self.covariance.sigma_max)
        return self.trace / top if top else 0.0

    def variance_dimension(self, share: float) -> int | None:
        """Least number of principal components that hold ``share`` of the variance (Jolliffe 2002, §6.1.1).

        ``None`` where a sketch leaves it open.
        """
        values = np.clip(self.covariance.singular_values, 0, None)
        if not self.sketch_error:
            return measures.variance_dimension(np.sqrt(values), share)
        # the sketch takes at most its error off each eigenvalue, and the trace is exact
        wanted = share * self.trace
        least, most = (np.cumsum(values + error) >= wanted for error in (self.sketch_error, 0.0))
        low = int(least.argmax()) if least.any() else self.width
        high = int(most.argmax()) if most.any() else self.width
        return low + 1 if low == high < self.width else None

    def alpha_req(self, *, first: int = 1, last: int | None = None) -> float:
        """α of λ_i ∝ i^(−α), a least-squares fit to eigenvalues ``first`` … ``last`` (Agrawal et al., NeurIPS 2022).

        Eigenvalues within the rounding of the features, or within a sketch's error, do not count. NaN where fewer than
        two are left.
        """
        values = np.clip(self.covariance.singular_values, 0, None)
        if self.constant:
            return float("nan")
        rounding = self.rounding**2 / max(self.samples - 1, 1) + (self.covariance.error_bound or 0.0)
        floor = max(rounding, self.sketch_error) / float(values[0])
        return measures.alpha_req(np.sqrt(values), first=first, last=last, floor=floor)

    @property
    def limited_by(self) -> Limit:
        """What the dimension says nothing beyond.

        ``constant`` where all samples give the same features; ``sketch`` where only bounds of the dimension are known,
        so that more memory would narrow them; ``precision`` where rounding of the features' dtype leaves more than 1
        and more than 5% of the dimension open; ``samples`` where it is at least 0.9·(N − 1) and N − 1 < d: more
        samples would raise it; else ``network``.
        """
        if self.constant:
            return "constant"
        low, high = self.pca_bounds
        if high > low and self.sketch_error:
            return "sketch"
        if high - low > max(1, _WIDE * self.pca_dimension):
            return "precision"
        most = self.samples - 1
        return "samples" if most < self.width and self.pca_dimension >= _LIMIT * most else "network"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; eigenvalues beyond the N − 1 that can differ from zero are left out."""
        return {
            "name": self.name,
            "width": self.width,
            "samples": self.samples,
            "pca_bounds": list(self.pca_bounds),
            **{name: of(self) for name, of in DIMENSIONS.items()},
            **({} if self.by_class is None else {f.name: plain(getattr(self.by_class, f.name)) for f in _BY_CLASS}),
            "limited_by": self.limited_by,
            "method": self.method,
            "reduce": self.reduce,
            "sketch_error": self.sketch_error,
            "rounding": self.rounding,
            "scale": self.scale,
            "eigenvalues": self.covariance.singular_values[: max(self.samples - 1, 1)].tolist(),
        }


def _held(share: float) -> Callable[[LayerFeatures], float | None]:
    return lambda layer: layer.variance_dimension(share)


def _alpha(layer: LayerFeatures) -> float | None:
    return None if math.isnan(alpha := layer.alpha_req()) else alpha


DIMENSIONS: dict[str, Callable[[LayerFeatures], float | None]] = {
    "pca_dimension": lambda layer: layer.pca_dimension,
    "effective_rank": lambda layer: layer.effective_rank,
    "participation_ratio": lambda layer: layer.participation_ratio,
    "rankme": lambda layer: layer.rankme,
    "stable_rank": lambda layer: layer.stable_rank,
    **{f"variance_dimension_{100 * share:.0f}": _held(share) for share in _SHARES},
    "alpha_req": _alpha,
}
"""What one layer's features are measured by, under the names of the table; ``None``: unknown."""


@dataclass(frozen=True, eq=False)
class FeatureProfile(Noted, Record):
    """Feature dimensions of the layers of a network, in order of depth; a sequence of ``LayerFeatures``.

    Index it with a number or a layer's name. ``facts`` are what was approximated or is to be known; ``notes`` are their
    sentences.
    """

    layers: tuple[LayerFeatures, ...]
    kind: str = "feature_rank"
    facts: tuple[Fact, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerFeatures]:
        return iter(self.layers)

    def __getitem__(self, key: int | str) -> LayerFeatures:
        if isinstance(key, int):
            return self.layers[key]
        for layer in self.layers:
            if layer.name == key:
                return layer
        raise UsageError(f"no layer {key!r} in this profile; {nearest(key, [layer.name for layer in self.layers])}")

    def table(self) -> pd.DataFrame:
        """One row per layer."""
        import pandas as pd

        rows = []
        for layer in self.layers:
            row = layer.to_dict()
            del row["eigenvalues"]
            row["pca_low"], row["pca_high"] = row.pop("pca_bounds")
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Dimensions over depth; layers that the samples limit are crossed."""
        return plot_layers([layer.to_dict() for layer in self], ax=ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": 1,
            "kind": self.kind,
            "layers": [layer.to_dict() for layer in self.layers],
            "facts": [fact.to_dict() for fact in self.facts],
            "notes": list(self.notes),
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        return layers_text([layer.to_dict() for layer in self], self.facts)


def layer_of_eigenvalues(
    name: str,
    scatter: np.ndarray[Any, np.dtype[np.float64]],
    width: int,
    samples: int,
    *,
    uncentred: np.ndarray[Any, np.dtype[np.float64]],
    **more: Any,
) -> LayerFeatures:
    """The record from the eigenvalues of a scatter matrix (any number of the largest; the rest are zero).

    ``uncentred`` are those of XᵀX, the mean left in.
    """
    scatter = np.sort(scatter)[::-1][: min(samples - 1, width)]
    variances = np.zeros(width)
    variances[: len(scatter)] = scatter / (samples - 1)
    sigma = np.zeros(min(samples, width))
    sigma[: len(scatter)] = np.sqrt(scatter)
    raw = np.zeros(min(samples, width))
    kept = np.sort(uncentred)[::-1][: len(raw)]
    raw[: len(kept)] = np.sqrt(kept)
    trace = more.pop("trace", None)
    eps = float(np.finfo(np.float64).eps)
    error = max(width, samples) * eps * float(variances[0])
    return LayerFeatures(
        name,
        width,
        samples,
        Spectrum(variances, (width, width), error_bound=error),
        Spectrum(sigma, (samples, width), square_error=error * (samples - 1)),
        trace=float(variances.sum()) if trace is None else trace / (samples - 1),
        rankme=Spectrum(raw, (samples, width)).rankme,
        **more,
    )
