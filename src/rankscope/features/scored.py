"""The least k that keeps a score of the caller's own, for tasks without logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rankscope._base.arrays import dense
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, MeasurementError, type_and_line
from rankscope._base.provenance import device_name, versions
from rankscope.features.classification_result import ClassificationDimension
from rankscope.features.crossing import first_dimension, variance_kept
from rankscope.features.principal import PrincipalAxes

__all__ = ["by_score", "made_of"]


def by_score(
    x: torch.Tensor,
    labels: Any,
    scorer: Callable[[torch.Tensor, torch.Tensor], float],
    basis: PrincipalAxes,
    keep: float,
    projection: str,
    *,
    least: int = 1,
) -> ClassificationDimension:
    """The same for a task without logits: the scorer runs at every k."""
    y = dense(labels, "labels").to(x.device)
    if len(y) != len(x):
        raise DataError(f"{len(y)} labels for {len(x)} samples; give one label per sample")
    full = _scored(scorer, x, y)
    if not full > 0 or not math.isfinite(full):
        raise MeasurementError(f"the full score is {full:g}; a share of it is kept, so give a scorer that is positive")
    # in float64, and rounded once: beside a large mean, sums in float32 would leave no digits to the spread
    exact, axes = x.double(), basis.axes
    mean = basis.mean if projection == "centred" else torch.zeros_like(exact[0])
    coordinates = (exact - mean) @ axes
    projected = mean.expand_as(exact).clone()
    without = _scored(scorer, projected.to(x.dtype), y) if least == 0 else None
    scores = torch.zeros(x.shape[1], dtype=torch.float64)
    for k in range(x.shape[1]):
        projected.addmm_(coordinates[:, k : k + 1], axes[:, k : k + 1].T)
        score = _scored(scorer, projected.to(x.dtype), y)
        scores[k] = score if not math.isnan(score) else -math.inf  # a NaN is no score: it never reaches the threshold
    dimension, facts = first_dimension(scores, keep * full, basis, without=without)
    return ClassificationDimension(
        dimension=dimension,
        ambient=x.shape[1],
        full_accuracy=full,
        curve=scores.numpy(),
        top5=None,
        full_top5=None,
        interval=None,
        keep=keep,
        projection=projection,
        samples=len(x),
        classes=None,
        variance_kept=variance_kept(basis, dimension),
        facts=facts,
        provenance=made_of(x, len(x)),
        without=without,
    )


def _scored(scorer: Callable[[torch.Tensor, torch.Tensor], float], x: torch.Tensor, y: torch.Tensor) -> float:
    """The score of copies: a function may write into what it is given."""
    try:
        score = scorer(x.clone(), y.clone())
    except Exception as error:  # whatever a caller's function raises
        raise DataError(f"scorer fails on features of shape {tuple(x.shape)}: {type_and_line(error)}") from error
    return _number(score)


def _number(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"scorer returns a {type(score).__name__}; it must return one number") from error


def made_of(x: torch.Tensor, fitted: int, *, apart: bool = False, seed: int = 0, bootstrap: int = 0) -> dict[str, Any]:
    """Provenance of a result on ``x``, whose axes come from ``fitted`` samples, of other data if ``apart``."""
    return {
        "versions": versions(),
        "device": device_name(x.device),
        "seed": seed,
        "bootstrap": bootstrap,
        "axes_from": f"{fitted} samples" + (" of fit_features" if apart else ", those measured on"),
        "dtype": f"{dtype_name(x.dtype)} logits, float64 axes",
    }
