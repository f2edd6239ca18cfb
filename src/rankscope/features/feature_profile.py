"""The records of ``feature_rank``: one layer's covariance spectrum with its dimensions, and a profile of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.errors import UsageError, nearest
from rankscope.spectra import Spectrum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["FeatureProfile", "LayerFeatures"]

# Share of the N − 1 directions that N samples can span, above which the samples and not the network set the number
_LIMIT = 0.9


@dataclass(frozen=True, eq=False)
class LayerFeatures:
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

    @property
    def pca_dimension(self) -> int:
        """#{λ_i ≥ eps32·d·λ_1} over the d eigenvalues of the covariance (paper §6.1)."""
        return self.covariance.rank("paper").value

    @property
    def pca_bounds(self) -> tuple[int, int]:
        """Between what the dimension must lie: [value, value] up to rounding, wider for a sketch."""
        if not self.sketch_error:
            return self.pca_dimension, self.pca_dimension
        low = self.covariance.singular_values
        tau = self.covariance.rank("paper").threshold
        top_tau = tau * (low[0] + self.sketch_error) / low[0]
        known = int((low >= top_tau).sum())
        # eigenvalues that were not kept lie below the sketch's error; enough trace must be left for each of them
        open_above = int((low + self.sketch_error >= tau).sum())
        return known, min(open_above, self.width, self.samples - 1)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of σ/‖σ‖₁, σ of the centred feature matrix (Roy and Vetterli 2007)."""
        return self.matrix.effective_rank

    @property
    def participation_ratio(self) -> float:
        """(Σλ)²/Σλ² over the covariance's eigenvalues (Gao et al. 2017)."""
        return self.matrix.participation_ratio

    @property
    def rankme(self) -> float:
        """RankMe of the centred feature matrix (Garrido et al. 2023, who do not centre)."""
        return self.matrix.rankme

    @property
    def stable_rank(self) -> float:
        """‖X‖²_F/‖X‖²₂ = Σλ/λ_1 of the centred feature matrix (Rudelson and Vershynin 2007)."""
        top = float(self.covariance.sigma_max)
        return self.trace / top if top else 0.0

    @property
    def limited_by(self) -> str:
        """What the dimension says nothing beyond.

        ``samples`` where it is at least 0.9·(N − 1) and N − 1 < d: more samples would raise it; ``sketch`` where only
        bounds of it are known, so that more memory would raise it; else ``network``.
        """
        most = self.samples - 1
        low, high = self.pca_bounds
        if high > low:
            return "sketch"
        return "samples" if most < self.width and self.pca_dimension >= _LIMIT * most else "network"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; eigenvalues beyond the N − 1 that can differ from zero are left out."""
        return {
            "name": self.name,
            "width": self.width,
            "samples": self.samples,
            "pca_dimension": self.pca_dimension,
            "pca_bounds": list(self.pca_bounds),
            "effective_rank": self.effective_rank,
            "participation_ratio": self.participation_ratio,
            "rankme": self.rankme,
            "stable_rank": self.stable_rank,
            "limited_by": self.limited_by,
            "method": self.method,
            "reduce": self.reduce,
            "sketch_error": self.sketch_error,
            "eigenvalues": self.covariance.singular_values[: max(self.samples - 1, 1)].tolist(),
        }


@dataclass(frozen=True, eq=False)
class FeatureProfile:
    """Feature dimensions of the layers of a network, in order of depth; a sequence of ``LayerFeatures``.

    Index it with a number or a layer's name. ``notes`` say what was approximated and why.
    """

    layers: tuple[LayerFeatures, ...]
    kind: str = "feature_rank"
    notes: tuple[str, ...] = ()
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
        """One row a layer."""
        import pandas as pd

        rows = []
        for layer in self.layers:
            row = layer.to_dict()
            del row["eigenvalues"]
            row["pca_low"], row["pca_high"] = row.pop("pca_bounds")
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, *, ax: Any = None) -> Figure:
        """Dimensions over depth; layers that the samples limit are crossed."""
        from rankscope.features.figure import plot_profile

        return plot_profile(self, ax=ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": 1,
            "kind": self.kind,
            "layers": [layer.to_dict() for layer in self.layers],
            "notes": list(self.notes),
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        head = (
            "layer",
            "width",
            "samples",
            "PCA dim.",
            "eff. rank",
            "part. ratio",
            "RankMe",
            "stable rank",
            "limited by",
        )
        body = [
            (
                layer.name,
                f"{layer.width:,}",
                f"{layer.samples:,}",
                f"{layer.pca_dimension:,}" if not layer.sketch_error else "{:,}–{:,}".format(*layer.pca_bounds),
                *(
                    f"{v:.1f}"
                    for v in (layer.effective_rank, layer.participation_ratio, layer.rankme, layer.stable_rank)
                ),
                layer.limited_by,
            )
            for layer in self.layers
        ]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        lines = [
            "  ".join(v.ljust(w) if i in (0, 8) else v.rjust(w) for i, (v, w) in enumerate(zip(r, widths, strict=True)))
            for r in (head, *body)
        ]
        return "\n".join([line.rstrip() for line in lines] + [f"note: {note}" for note in self.notes])


def layer_of_eigenvalues(
    name: str, scatter: np.ndarray[Any, np.dtype[np.float64]], width: int, samples: int, **more: Any
) -> LayerFeatures:
    """The record from the eigenvalues of a scatter matrix (any number of the largest; the rest are zero)."""
    scatter = np.sort(scatter)[::-1][: min(samples - 1, width)]
    variances = np.zeros(width)
    variances[: len(scatter)] = scatter / (samples - 1)
    sigma = np.zeros(min(samples, width))
    sigma[: len(scatter)] = np.sqrt(scatter)
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
        **more,
    )
