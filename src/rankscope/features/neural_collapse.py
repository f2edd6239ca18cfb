"""Neural collapse, NC1 to NC4 (Papyan, Han and Donoho, PNAS 2020), of labelled features and a linear head."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rankscope._base.checks import count_of
from rankscope._base.errors import DataError, UsageError
from rankscope.features.batch_value import ValueOfBatch
from rankscope.features.heads import only_its_weights, refuse_hooks, weight_and_bias
from rankscope.features.labelled_rows import LabelledRows
from rankscope.features.logit_scale import scaled
from rankscope.features.precision import unit_roundoff
from rankscope.features.principal import from_first
from rankscope.spectra.scale import power_of_two

__all__ = ["NeuralCollapse", "NeuralCollapseValues", "neural_collapse"]


@dataclass(frozen=True)
class NeuralCollapseValues:
    """The four numbers; all fall to 0 as features collapse to their class means.

    Attributes
    ----------
    nc1 : float
        tr(Σ_W Σ_B⁺)/C, within-class beside between-class covariance.
    nc2_norms : float
        Spread of ‖μ_c − μ_G‖: standard deviation over mean.
    nc2_angles : float
        Mean of |cos(μ_c − μ_G, μ_c' − μ_G) + 1/(C − 1)| over pairs of classes.
    nc3 : float
        ‖W/‖W‖_F − M/‖M‖_F‖_F, the head W beside the centred class means M (both C × d); NaN without a head.
    nc4 : float
        Share of the samples whose class by the head is not that of the nearest class mean; NaN without a head.
    """

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float
    nc4: float


class NeuralCollapse(ValueOfBatch, LabelledRows):
    """NC1–NC4 (Papyan, Han and Donoho, PNAS 2020) of features that arrive in batches with their labels.

    ``nc1`` is tr(Σ_W Σ_B⁺)/C; ``nc2_norms`` and ``nc2_angles`` are the distance of the class means from equal norms and
    from equal angles; ``nc3`` is that of the head from the class means; ``nc4`` is the share of the samples that the
    head puts in another class than the nearest class mean does. All are at least 0, and 0 in full collapse; ``nc3`` is
    at most 2 and ``nc4`` at most 1. Few samples a class make ``nc1`` too low: with n in each, the within-class
    covariance is about (n − 1)/n of its own.

    Memory: all N rows (4·N·d bytes in float32), since NC4 compares each with the class means, which are known at the
    end.

    Parameters
    ----------
    classes : int
        C.
    head : nn.Linear or (weight, bias), optional
        The layer that reads these features; weight (C, d). ``None`` leaves NC3 and NC4 NaN.
    bias : Tensor, optional
        Its bias where ``head`` is a weight alone.

    Raises
    ------
    DataError
        Rows and labels that do not fit, NaN rows, labels outside 0 … C − 1, fewer than two classes with samples.

    Examples
    --------
    >>> metric = NeuralCollapse(2, head=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1, 1]))
    >>> {name: round(float(value), 6) for name, value in metric.compute().items()}
    {'nc1': 0.0, 'nc2_norms': 0.0, 'nc2_angles': 0.0, 'nc3': 0.0, 'nc4': 0.0}
    """

    higher_is_better = False

    def __init__(
        self, classes: int, *, head: Any = None, bias: Any = None, name: str = "features", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.classes = count_of(classes, "classes", least=2, most=10**7)
        self._head = _affine(head, bias, self.classes)

    def no_value(self) -> dict[str, Tensor] | None:
        """NaN for rows of fewer than two classes."""
        if len({int(label) for part in self.labels for label in part.unique()}) > 1:
            return None
        return {f.name: torch.tensor(torch.nan, dtype=torch.float64) for f in fields(NeuralCollapseValues)}

    def compute(self) -> dict[str, Tensor]:
        """``nc1``, ``nc2_norms``, ``nc2_angles``, ``nc3``, ``nc4``, each a float64 scalar."""
        rows, labels = self.all_rows(self.classes)
        weight, bias = (None, None) if self._head is None else self._head
        found = neural_collapse(rows, labels, self.classes, weight=weight, bias=bias, name=self.name)
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in vars(found).items()}


def neural_collapse(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    name: str = "features",
) -> NeuralCollapseValues:
    """NC1–NC4 of (N, d) rows with (N,) labels; classes without a sample are left out.

    >>> x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> round(neural_collapse(x, torch.tensor([0, 0, 1, 1]), 2).nc2_norms, 6)
    0.0
    """
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    if int(present.sum()) < 2:
        raise DataError(f"{name}: samples of {int(present.sum())} class; neural collapse compares two or more")
    # every measure but the head's answers is free of the features' scale and mean
    x, unit = from_first(rows)
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, labels, x)
    means = sums[present] / counts[present, None]
    place = present.cumsum(0) - 1  # of each class among those present
    within = x - means[place[labels]]
    between = means - means.mean(0)
    # each mean of n numbers is wrong by their own rounding, which is relative to what was stored: far from zero that
    # exceeds what the singular values are compared with otherwise. What does not vary has none that matters
    stored = torch.where((x != 0).any(0), rows.to(torch.float64).abs() / unit, 0.0)
    rounding = _mean_size(stored, labels, present) * unit_roundoff(rows.dtype)
    # and by that of their sum
    rounding += _mean_size(x.abs(), labels, present) * (int(counts.max()) + 1) * unit_roundoff(torch.float64)
    return NeuralCollapseValues(
        _variability(within, between, rounding),
        *_simplex(between),
        _duality(weight, between, present, name),
        _disagreement(rows, x, means, present, weight, bias),
    )


def _mean_size(sizes: Tensor, labels: Tensor, present: Tensor) -> float:
    """Norm of the class means of magnitudes (N, d)."""
    sums = torch.zeros(len(present), sizes.shape[1], dtype=sizes.dtype, device=sizes.device)
    counts = torch.bincount(labels, minlength=len(present))[present, None]
    return float((sums.index_add_(0, labels, sizes)[present] / counts).norm())


def _variability(within: Tensor, between: Tensor, rounding: float) -> float:
    """tr(Σ_W Σ_B⁺)/C: Σ_B⁺ from the singular values of the centred means, so no d × d matrix is made.

    ``rounding`` bounds the spectral norm of what the means are wrong by: singular values up to it may be zero.
    """
    classes = len(between)
    _, sigma, axes = torch.linalg.svd(between, full_matrices=False)
    # C centred means have rank C − 1 at most
    sigma, axes = sigma[: classes - 1], axes[: classes - 1]
    kept = sigma > max(float(sigma[0]) * max(between.shape) * torch.finfo(torch.float64).eps, rounding)
    if not bool(kept.any()):
        return math.inf if bool((within != 0).any()) else math.nan
    spread = (within @ axes[kept].T).square().mean(0)  # Σ_W along each axis of Σ_B
    return float((spread * classes / sigma[kept].square()).sum() / classes)


def _simplex(between: Tensor) -> tuple[float, float]:
    norms = between.norm(dim=1)
    mean = float(norms.mean())
    if not mean:
        return math.nan, math.nan
    classes = len(between)
    unit = between / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    off = ~torch.eye(classes, dtype=torch.bool, device=between.device)
    angles = ((unit @ unit.T)[off] + 1 / (classes - 1)).abs().mean()
    return float(norms.std(unbiased=False)) / mean, float(angles)


def _duality(weight: Tensor | None, between: Tensor, present: Tensor, name: str) -> float:
    if weight is None:
        return math.nan
    w = weight.to(between)[present]
    w = w / power_of_two(float(w.abs().max()) if w.numel() else 0.0)
    if w.shape != between.shape:
        raise DataError(f"{name}: the head reads {w.shape[1]} dimensions and the features have {between.shape[1]}")
    if not bool(w.norm() > 0) or not bool(between.norm() > 0):
        return math.nan
    return float((w / w.norm() - between / between.norm()).norm())


def _disagreement(
    rows: Tensor, x: Tensor, means: Tensor, present: Tensor, weight: Tensor | None, bias: Tensor | None
) -> float:
    """``rows`` go into the head; ``x`` are they without what distances do not depend on, as ``means`` are."""
    if weight is None:
        return math.nan
    offset = torch.zeros(len(weight)).to(x) if bias is None else bias.to(x)
    inputs, products, start = scaled(rows.to(x), weight.to(x).T, offset)
    scores = (inputs @ products + start)[:, present]
    # distances by way of products: of numbers far from zero they would be rounded away
    level = means.mean(0)
    nearest = torch.cat([torch.cdist(part - level, means - level).argmin(1) for part in x.split(4096)])
    return float((scores.argmax(1) != nearest).double().mean())


def _affine(head: Any, bias: Any, classes: int) -> tuple[Tensor, Tensor | None] | None:
    if head is None:
        return None
    if isinstance(head, torch.nn.Module):
        refuse_hooks(head)
        if not only_its_weights(head):
            raise UsageError(
                f"head is a {type(head).__name__}, which may do more than multiply by its weight; give a plain linear "
                "layer or its (weight, bias)"
            )
        weight, bias = weight_and_bias(head)
        weight = weight.flatten(1)
    elif isinstance(head, tuple | list) and len(head) == 2:
        weight, bias = head
    else:
        weight = head
    if not isinstance(weight, Tensor) or weight.ndim != 2 or len(weight) != classes:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(head).__name__
        raise UsageError(f"head is {shape}; give a linear layer or a weight of shape ({classes}, d)")
    if not bool(torch.isfinite(weight).all()) or (bias is not None and not bool(torch.isfinite(bias).all())):
        raise DataError("the head holds a NaN or infinite value")
    return weight.detach(), None if bias is None else bias.detach()
