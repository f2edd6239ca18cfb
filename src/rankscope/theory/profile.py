"""The record of a deep-chain experiment: a spectrum at every depth, and its table, figure and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankscope._base.records import ByValue, Record
from rankscope.spectra import EPS32, Spectrum, Tolerance, as_tolerance
from rankscope.theory._blocks import Activation, Normalisation, init_std
from rankscope.theory.prediction import predicted_rank
from rankscope.theory.residual import relu_width
from rankscope.theory.residual_law import residual_chain_rank
from rankscope.views.chain_figure import plot_chain
from rankscope.views.chain_text import chain_text
from rankscope.views.chains import ChainView, Law
from rankscope.views.phrases import counted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ChainProfile", "ChainRun", "ChainStep"]


@dataclass(frozen=True, eq=False)
class ChainStep(ByValue):
    """One depth of one chain.

    Attributes
    ----------
    depth : int
        Layers passed.
    jacobian : Spectrum
        Of the Jacobian of all layers so far, scaled to Frobenius norm 1.
    features : Spectrum
        Of the centred covariance of the features (its eigenvalues), scaled likewise.
    log_sigma_max : float
        log‖J‖₂ of the unscaled Jacobian; −inf when it is zero.
    """

    depth: int
    jacobian: Spectrum
    features: Spectrum
    log_sigma_max: float


@dataclass(frozen=True, eq=False)
class ChainRun(ByValue):
    """One random chain: its seed, one step per depth, and the depth at which float32 stopped it, if it did.

    ``singular`` holds (layer counted from 1, rank) of weights that a caller's init made singular to float64 precision.
    """

    seed: int
    steps: tuple[ChainStep, ...]
    stopped_at: int | None = None
    singular: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class ChainProfile(Record):
    """Jacobian rank and feature dimension of random deep chains, by depth.

    Attributes
    ----------
    runs : tuple of ChainRun
        One per seed.
    width, depth, samples : int
        Units per layer, layers asked for, inputs behind the features.
    init, dtype : str
        Name of the initialisation (a callable's own name) and what was computed in.
    std : float or None
        Standard deviation of the Gaussian entries; ``None`` where a callable drew them.
    activation, residual, normalisation
        The block, as given to ``deep_chain``.
    tolerance : Tolerance
        Of the Jacobian rank. The feature dimension always uses the paper's #{λ_i ≥ eps32·N·λ_1} (§6.1).
    float32_stop : bool
        Whether the paper's stopping rule was on.
    seconds : float
        Wall time.
    provenance : dict
        Versions and device.
    input_width : int or None
        Columns of the Jacobian where they are fewer than units; ``None`` means the width.
    """

    runs: tuple[ChainRun, ...]
    width: int
    depth: int
    samples: int
    init: str
    dtype: str
    activation: Activation | None
    residual: float | None
    normalisation: Normalisation | None
    tolerance: Tolerance
    float32_stop: bool
    seconds: float
    provenance: dict[str, str] = field(default_factory=dict)
    input_width: int | None = None
    std: float | None = None

    @classmethod
    def from_earlier(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Earlier files say ``inputs``, have no ``std`` and put the name of a callable between angle brackets."""
        if "inputs" in data:
            data = {("input_width" if key == "inputs" else key): value for key, value in data.items()}
        if "std" in data:
            return data
        init, own = data["init"].strip("<>"), data["init"].startswith("<")
        return {**data, "init": init, "std": None if own else init_std(init, data["width"])}

    @property
    def jacobian_ranks(self) -> NDArray[np.float64]:
        """Numerical rank of the Jacobian, shape (seeds, depth); NaN after a stop."""
        return self._gather(lambda step: step.jacobian.rank(self.tolerance).value)

    @property
    def feature_dimensions(self) -> NDArray[np.float64]:
        """PCA dimension of the features, shape (seeds, depth); NaN after a stop."""
        return self._gather(lambda step: step.features.rank("paper").value)

    @property
    def rises(self) -> tuple[tuple[int, int], ...]:
        """(seed, depth) wherever the Jacobian's numerical rank rose: it may, and is shown as measured."""
        ranks = self.jacobian_ranks
        return tuple(
            (self.runs[s].seed, int(k) + 2) for s in range(len(ranks)) for k in np.flatnonzero(np.diff(ranks[s]) > 0)
        )

    @property
    def prediction(self) -> str:
        """Which theory the predicted curves come from, or why there are none; words for ``law``."""
        return self.law.value

    @property
    def law(self) -> Law:
        """Which law predicts this block, or why none does."""
        if self.std is None:
            return Law.OWN_ENTRIES
        if self.input_width not in (None, self.width):
            return Law.FEWER_INPUTS
        if self.residual is not None:
            if self.normalisation is not None:
                return Law.NORMALISED_BRANCH
            if self.activation == "relu":
                return Law.RESIDUAL_RELU
            return Law.RESIDUAL if self.activation is None else Law.RESIDUAL_BESIDE
        if self.normalisation is not None or self.activation in ("gelu", "tanh"):
            return Law.GAUSSIAN_BESIDE
        return Law.GAUSSIAN if self.activation is None else Law.GAUSSIAN_RELU

    @property
    def prediction_range(self) -> str:
        """Where the law behind the curves was measured against simulated chains, and how far off it was.

        Empty where there is no prediction, or only a curve to compare with.
        """
        if not self.law.predicts or self.law.beside:
            return ""
        if self.law is Law.GAUSSIAN_RELU:
            return "law of large width: mean within 8% of the width at widths of 60 and more, single chains vary more"
        least = 20 if self.residual is not None else 4
        return f"law of large width: within 3 dimensions or 2% at widths of {least} and more"

    @property
    def in_range(self) -> bool:
        """Whether the width is in ``prediction_range``; False if that is empty.

        Greater widths are nearer to the laws' limit, so only the lower end counts.
        """
        if not self.prediction_range:
            return False
        least = 20 if self.residual is not None else 60 if self.law is Law.GAUSSIAN_RELU else 4
        return self.width >= least

    @cached_property
    def predicted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predicted Jacobian ranks and feature dimensions, shape (depth,) each; NaN where there is no prediction.

        The features of a linear chain have covariance JJᵀ up to the finite sample, so their prediction is that of J
        at the square root of the threshold, which holds for many more samples than units.
        """
        nothing = np.full(self.depth, np.nan)
        shape, std = (self.width, self.width), self.std
        if std is None or not self.law.predicts:
            return nothing, nothing.copy()
        jacobian, features = self.tolerance.relative(shape), float(np.sqrt(EPS32 * self.width))
        depths = range(1, self.depth + 1)
        if self.residual is not None:
            branch = abs(self.residual) * std * float(np.sqrt(self.width))
            first, second = (
                np.array([residual_chain_rank(self.width, branch, k, rtol) for k in depths])
                for rtol in (jacobian, features)
            )
            return first, second
        relu = self.activation == "relu" and self.normalisation is None
        n = relu_width(self.width) if relu else self.width
        first = np.array([predicted_rank(n, k, jacobian).value for k in depths])
        # ReLU features carry the nonlinearity's own covariance, which may exceed the Jacobian's: no prediction
        second = nothing if relu else np.array([predicted_rank(n, k, features).value for k in depths])
        return first, second

    def table(self) -> pd.DataFrame:
        """One row per seed and depth, with the predictions beside the measurements."""
        import pandas as pd

        jacobian, features = self.predicted
        ranks, dimensions = self.jacobian_ranks, self.feature_dimensions
        rows = [
            {
                "seed": run.seed,
                "depth": step.depth,
                "jacobian_rank": int(ranks[s, step.depth - 1]),
                "feature_dimension": int(dimensions[s, step.depth - 1]),
                "log_sigma_max": step.log_sigma_max,
                "predicted_jacobian_rank": jacobian[step.depth - 1],
                "predicted_feature_dimension": features[step.depth - 1],
            }
            for s, run in enumerate(self.runs)
            for step in run.steps
        ]
        columns = ["seed", "depth", "jacobian_rank", "feature_dimension", "log_sigma_max"]
        columns += ["predicted_jacobian_rank", "predicted_feature_dimension"]
        return pd.DataFrame(rows, columns=columns)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Measured ranks with the predictions laid over, readable at a column's width of 8.5 cm.

        Lines are means over seeds, bands their range. Returns the axes; ``ax.figure.savefig`` writes it.
        """
        return plot_chain(self._view(), ax)

    def to_dict(self, *, spectra: bool = False) -> dict[str, Any]:
        """Plain values for JSON; ``spectra`` adds every singular value (2·width numbers a depth)."""

        def plain(values: NDArray[np.float64]) -> list[Any]:
            return [plain(v) if v.ndim else (float(v) if np.isfinite(v) else None) for v in values]

        found: dict[str, Any] = {
            "schema_version": 1,
            "kind": "chain_profile",
            "width": self.width,
            "input_width": self.width if self.input_width is None else self.input_width,
            "depth": self.depth,
            "samples": self.samples,
            "init": self.init,
            "std": self.std,
            "dtype": self.dtype,
            "activation": self.activation,
            "residual": self.residual,
            "normalisation": self.normalisation,
            "tolerance": self.tolerance.to_dict(),
            "feature_tolerance": as_tolerance("paper").to_dict(),
            "float32_stop": self.float32_stop,
            "seeds": [run.seed for run in self.runs],
            "singular_layers": [[list(pair) for pair in run.singular] for run in self.runs],
            "stopped_at": [run.stopped_at for run in self.runs],
            "jacobian_ranks": plain(self.jacobian_ranks),
            "feature_dimensions": plain(self.feature_dimensions),
            "log_sigma_max": plain(self._gather(lambda step: step.log_sigma_max)),
            "prediction": self.prediction,
            "prediction_range": self.prediction_range,
            "prediction_in_range": self.in_range,
            "predicted_jacobian_ranks": plain(self.predicted[0]),
            "predicted_feature_dimensions": plain(self.predicted[1]),
            "seconds": self.seconds,
            "provenance": dict(self.provenance),
        }
        if spectra:
            found["spectra"] = [
                [
                    {
                        "depth": step.depth,
                        "jacobian": step.jacobian.singular_values.tolist(),
                        "features": step.features.singular_values.tolist(),
                    }
                    for step in run.steps
                ]
                for run in self.runs
            ]
        return found

    def __str__(self) -> str:
        return chain_text(self._view())

    __repr__ = __str__

    def _view(self) -> ChainView:
        return ChainView(
            title=self.title,
            dtype=self.dtype,
            tolerance=str(self.tolerance),
            samples=self.samples,
            seconds=self.seconds,
            width=self.width,
            depth=self.depth,
            residual=self.residual is not None,
            ranks=self.jacobian_ranks,
            dimensions=self.feature_dimensions,
            predicted=self.predicted,
            law=self.law,
            law_range=self.prediction_range,
            in_range=self.in_range,
            seeds=tuple(run.seed for run in self.runs),
            stops=tuple(run.stopped_at for run in self.runs),
            singular=tuple(run.singular for run in self.runs),
            rises=self.rises,
            floor=EPS32,
        )

    def _gather(self, read: Callable[[ChainStep], float]) -> NDArray[np.float64]:
        found = np.full((len(self.runs), self.depth), np.nan)
        for s, run in enumerate(self.runs):
            for step in run.steps:
                found[s, step.depth - 1] = read(step)
        return found

    @property
    def title(self) -> str:
        """Width, init, and the options of the layers, in one phrase."""
        fewer = "" if self.input_width in (None, self.width) else f" behind {counted(self.input_width, 'input')}"
        parts = [f"width {self.width:,}{fewer}", self.init]
        parts += [part for part in (self.activation, self.normalisation) if part]
        if self.residual is not None:
            parts.append(f"residual × {self.residual:.3g}")
        return ", ".join(parts)
