"""Ranks and dimensions of features as torchmetrics metrics: all read off one state, the centred moments.

A ``MetricCollection`` of these keeps one state for all of them (compute groups), so ten cost what one does.
"""

from __future__ import annotations

from typing import Any

import torch

from rankscope._base.checks import count_of, number_of
from rankscope._base.facts import Fact, FactKind
from rankscope.features.accumulate import layer_features
from rankscope.features.feature_profile import LayerFeatures
from rankscope.features.moments import ScalarOfMoments
from rankscope.views.sentences import sentence

__all__ = [
    "AlphaReQ",
    "EffectiveRank",
    "PCADimension",
    "ParticipationRatio",
    "RankMe",
    "StableRank",
    "VarianceDimension",
]


class _FeatureRank(ScalarOfMoments):
    """One number read off the moments of all rows. A subclass says which, in ``_read``."""

    def compute(self) -> torch.Tensor:
        """The value, a float64 scalar."""
        self._merge()
        return torch.tensor(self._read(self.features()), dtype=torch.float64, device=self.mean.device)

    def features(self) -> LayerFeatures:
        """Everything that the moments say, with the bounds of the dimension.

        Under ``torch.distributed`` that is of the rows of all processes, as the last ``compute`` merged them.

        Raises
        ------
        DataError
            Fewer than two rows came in.
        UsageError
            Under ``torch.distributed`` with several processes, before any ``compute``.
        """
        return layer_features(self.name, self)

    @property
    def note(self) -> str:
        """A sentence where the number of rows or the precision limits the value; else an empty text."""
        found = self.features()
        if found.limited_by not in ("samples", "constant", "precision"):
            return ""
        low, high = found.pca_bounds
        values = {"name": self.name, "samples": found.samples, "width": found.width, "low": low, "high": high}
        kinds = {
            "samples": FactKind.FEW_ROWS,
            "constant": FactKind.CONSTANT_LAYER,
            "precision": FactKind.ROUNDED_LAYER,
        }
        return sentence(Fact(kinds[found.limited_by], values))

    def _read(self, found: LayerFeatures) -> float:
        raise NotImplementedError


class RankMe(_FeatureRank):
    """RankMe: exp(−Σ p log p), p = σ/‖σ‖₁ + 1e-7, σ the singular values of the features (Garrido et al., ICML 2023).

    As published the features are not centred; ``centred=True`` takes their mean out, which leaves the effective rank
    up to the 1e-7. Between 1 and min(N, d), up to that 1e-7. With few rows it is too low: N rows of d ≫ N independent
    dimensions give about N, so values of different N are not comparable.

    Examples
    --------
    >>> metric = RankMe()
    >>> metric.update(torch.eye(4).repeat(5, 1))
    >>> round(float(metric.compute()), 4)
    4.0
    """

    def __init__(self, width: int | None = None, *, centred: bool = False, name: str = "features", **kwargs: Any):
        super().__init__(width, name=name, **kwargs)
        self.centred = centred

    def _read(self, found: LayerFeatures) -> float:
        return found.matrix.rankme if self.centred else found.rankme


class EffectiveRank(_FeatureRank):
    """exp of the entropy of σ/‖σ‖₁, σ the singular values of the centred features (Roy and Vetterli, EUSIPCO 2007).

    Between 1 and min(N − 1, d); 0 where all rows are the same. Few rows make it too low: with N = d independent
    Gaussian rows it is about 0.7·d.

    Examples
    --------
    >>> metric = EffectiveRank()
    >>> metric.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> round(float(metric.compute()), 4)
    2.0
    """

    def _read(self, found: LayerFeatures) -> float:
        return found.effective_rank


class ParticipationRatio(_FeatureRank):
    """(Σλ)²/Σλ² over the eigenvalues λ of the centred covariance (Gao et al., bioRxiv 214262, 2017).

    Between 1 and min(N − 1, d); 0 where all rows are the same. With N independent Gaussian rows in d dimensions it is
    about N·d/(N + d), not d: it needs N ≫ d.

    Examples
    --------
    >>> metric = ParticipationRatio()
    >>> metric.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> round(float(metric.compute()), 4)
    2.0
    """

    def _read(self, found: LayerFeatures) -> float:
        return found.participation_ratio


class StableRank(_FeatureRank):
    """‖X‖²_F/‖X‖²₂ = Σλ/λ_1 of the centred features X (Rudelson and Vershynin, J. ACM 2007).

    Between 1 and min(N − 1, d); 0 where all rows are the same. Few rows make it too low, as they make λ_1 too large.

    Examples
    --------
    >>> metric = StableRank()
    >>> metric.update(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> float(metric.compute())
    1.25
    """

    def _read(self, found: LayerFeatures) -> float:
        return found.stable_rank


class PCADimension(_FeatureRank):
    """#{λ_i ≥ eps32·d·λ_1} over the d eigenvalues of the centred covariance (*Rank Diminishing*, NeurIPS 2022, §6.1).

    A whole number between 0 and min(N − 1, d). It counts every direction that float32 tells from zero, so N rows of
    independent features give N − 1: ``note`` says where the rows set it. ``features().pca_bounds`` are its bounds.

    Examples
    --------
    >>> metric = PCADimension()
    >>> metric.update(torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [3.0, 3.0, 0.0], [5.0, 5.0, 0.0]]))
    >>> int(metric.compute())
    1
    """

    def _read(self, found: LayerFeatures) -> float:
        return found.pca_dimension


class VarianceDimension(_FeatureRank):
    """Least number of principal components that hold a share of the variance (Jolliffe 2002, §6.1.1).

    A whole number between 1 and min(N − 1, d); 0 where all rows are the same. Few rows make it too low.

    Parameters
    ----------
    share : float
        Above 0 and at most 1; often 0.9, 0.95 or 0.99.

    Examples
    --------
    >>> metric = VarianceDimension(0.9)
    >>> metric.update(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> int(metric.compute())
    1
    """

    def __init__(self, share: float = 0.95, width: int | None = None, *, name: str = "features", **kwargs: Any):
        super().__init__(width, name=name, **kwargs)
        self.share = number_of(share, "share", above=0, most=1)

    def _read(self, found: LayerFeatures) -> float:
        value = found.variance_dimension(self.share)
        return float("nan") if value is None else value


class AlphaReQ(_FeatureRank):
    """α of a power law λ_i ∝ i^(−α) of the centred covariance's eigenvalues (Agrawal et al., NeurIPS 2022).

    Not negative; near 1 where many directions carry information (the paper's good representations), large where few
    do. NaN with fewer than two eigenvalues. Few rows bend the tail down, which makes α too large; ``last`` leaves the
    tail out. Eigenvalues within the rounding of the features' dtype do not count.

    Parameters
    ----------
    first, last : int
        The first and last eigenvalue of the fit, counted from 1; default: all.

    Examples
    --------
    >>> metric = AlphaReQ()
    >>> x = torch.arange(1.0, 9.0, dtype=torch.float64) ** -0.5
    >>> metric.update(torch.cat([torch.diag(x), -torch.diag(x)]))
    >>> round(float(metric.compute()), 6)
    1.0
    """

    higher_is_better = False

    def __init__(
        self,
        width: int | None = None,
        *,
        first: int = 1,
        last: int | None = None,
        name: str = "features",
        **kwargs: Any,
    ):
        super().__init__(width, name=name, **kwargs)
        self.first = count_of(first, "first")
        self.last = None if last is None else count_of(last, "last", least=self.first + 1)

    def _read(self, found: LayerFeatures) -> float:
        return found.alpha_req(first=self.first, last=self.last)
