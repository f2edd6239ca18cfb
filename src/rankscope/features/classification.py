"""Classification dimension: how many principal components of the final features keep the accuracy (paper, Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from rankscope._base.errors import DataError, MeasurementError, UsageError, nearest
from rankscope._base.provenance import device_name, versions
from rankscope.features._inputs import as_labels, as_matrix
from rankscope.features.accuracy_curve import RankSweep, rank_of_label
from rankscope.features.classification_result import ClassificationDimension, FoldedHead
from rankscope.features.heads import find_head, head_mismatch, linear_parts
from rankscope.features.principal import PrincipalAxes, principal_axes
from rankscope.features.sweep import Resampling, first_crossing, sweep_callable, sweep_linear

__all__ = ["classification_dimension"]

Convention: TypeAlias = Literal["paper", "centred"]
Predict: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
_CONVENTIONS = ("paper", "centred")


def classification_dimension(
    features: Any,
    labels: Any,
    head: Any = None,
    *,
    retain: float = 0.95,
    convention: Convention = "paper",
    fit_features: Any = None,
    scorer: Callable[[torch.Tensor, torch.Tensor], float] | None = None,
    logits: Any = None,
    bootstrap: int = 200,
    seed: int = 0,
    stop_at_crossing: bool = False,
    allow_absent: bool = False,
    device: torch.device | str | None = None,
) -> ClassificationDimension:
    """Least k for which the projection on the top k principal components keeps ``retain`` × the full accuracy.

    Exact at every k: accuracy is not monotone in k, so nothing is bisected or skipped. The axes are eigenvectors of the
    float64 covariance; logits are float32, added up component by component, so an order of two logits that rests on
    their last bits (relative 1e-6) may differ from that of another summation. Equal logits count as ``torch.argmax``
    breaks them: the lower class index first, for top-5 too. At k = d the projection is the identity.

    Parameters
    ----------
    features : array, (N, d)
        Final features: what goes into the classifier. Used as float32.
    labels : array, (N,)
        Class indices; for a ``scorer`` any labels it understands.
    head : nn.Linear, 1×1 convolution, (weight, bias), callable (N, d) → (N, c), or the whole classifier
        The classifier. Any callable works, at the price of running it at every k; a linear one is some hundred times
        faster. Of a timm, torchvision or Hugging Face model the head is found (``find_head``).
    retain : float
        Share of the full accuracy to keep, in (0, 1]; 0.95 in Table 1.
    convention : "paper" or "centred"
        Both take the axes from the centred covariance. ``paper`` projects the features as they are, as the published
        procedure does: the part of their mean outside the k axes is lost. ``centred`` projects features − mean and
        adds the mean again.
    fit_features : array, (M, d), optional
        Data for the axes, when they should not come from the samples that the accuracy is measured on.
    scorer : callable (features, labels) → float, optional
        In place of a head, for tasks without one; larger is better, and the full score must be positive. No bootstrap.
    logits : array, (N, c), optional
        Stored logits: the head is checked against them.
    bootstrap : int
        Resamples for the 95 % interval; 0 for none.
    seed : int
        Of the resamples.
    stop_at_crossing : bool
        End the curve soon after the crossing (and those of 98 % of the resamples) instead of at d.
    allow_absent : bool
        Accept classes without a sample, and fewer samples than classes.
    device : torch.device or str, optional
        Where to compute; by default where the features are.

    Raises
    ------
    UsageError
        An option out of range; neither or both of ``head`` and ``scorer``.
    DataError
        Labels outside the classes, classes without samples, one class alone, constant or not finite features, a head of
        another width or one that does not reproduce ``logits``.
    MeasurementError
        A full accuracy of zero, relative to which nothing can be kept.

    Examples
    --------
    >>> x = torch.tensor([[3.0, 0.1], [2.0, -0.1], [-2.0, 0.1], [-3.0, -0.1]])
    >>> weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> found = classification_dimension(x, [0, 0, 1, 1], (weight, None), bootstrap=0)
    >>> found.dimension, found.ambient
    (1, 2)
    """
    _check_options(retain, convention, head, scorer, bootstrap)
    x = as_matrix(features, "features", device=device)
    fitted = x if fit_features is None else as_matrix(fit_features, "fit_features", device=x.device)
    if fitted.shape[1] != x.shape[1]:
        raise DataError(
            f"fit_features have width {fitted.shape[1]}, features {x.shape[1]}; give the same layer of both"
        )
    basis = principal_axes(fitted, name="features" if fit_features is None else "fit_features")
    if scorer is not None:
        return _by_score(x, labels, scorer, basis, retain, convention)
    with torch.no_grad():
        predict, parts = _predictor(head, x)
        classes = int(predict(x[:2]).shape[1])
        y = as_labels(labels, len(x), classes, device=x.device, balanced=not allow_absent)
        error = None
        if logits is not None:
            error = head_mismatch(predict, x, torch.as_tensor(logits))
        ranks = torch.cat([rank_of_label(predict(a), b) for a, b in zip(x.split(4096), y.split(4096), strict=True)])
        right = (ranks == 0).to(torch.float32)
        full = float(right.double().sum())
        if full == 0:
            raise MeasurementError(
                f"the head is right on none of {len(x)} samples; check that labels and head use the same class order"
            )
        resampling = Resampling.draw(bootstrap, len(x), seed, x.device)
        full_resampled = (resampling.weights @ right).double()
        stop = (retain * full, retain * full_resampled) if stop_at_crossing else None
        axes = basis.axes.to(torch.float32)
        mean = basis.mean.to(torch.float32) if convention == "centred" else torch.zeros_like(x[0])
        inputs = x - mean if convention == "centred" else x
        folded = None
        if parts is not None:
            weight, bias = parts
            products = (basis.axes.T @ weight.double().T).to(torch.float32)
            offset = (bias.double() + weight.double() @ mean.double()).to(torch.float32)
            sweep = RankSweep(inputs, y, offset.expand(len(x), -1).clone(), 5 if classes >= 10 else 1)
            counts = sweep_linear(sweep, axes, products, resampling, stop=stop)
            folded = FoldedHead(axes.cpu(), products.cpu(), offset.cpu(), mean.cpu())
        else:
            counts = sweep_callable(inputs, y, mean, axes, predict, resampling, stop=stop)
    needed = retain * full
    dimension, notes = _dimension(counts.top1, needed, basis)
    top5 = (counts.top5 / len(x)).cpu().numpy() if classes >= 10 else None
    return ClassificationDimension(
        dimension=dimension,
        ambient=x.shape[1],
        full_accuracy=full / len(x),
        curve=(counts.top1 / len(x)).cpu().numpy(),
        top5=top5,
        full_top5=float((ranks < 5).double().mean()) if classes >= 10 else None,
        interval=_interval(counts.resampled, retain * full_resampled, x.shape[1]),
        retain=retain,
        convention=convention,
        samples=len(x),
        classes=classes,
        variance_kept=_variance_kept(basis, dimension),
        head_error=error,
        notes=notes,
        provenance=_provenance(x.device, seed, bootstrap, len(fitted), fit_features is not None),
        folded=folded,
    )


def _check_options(retain: float, convention: str, head: Any, scorer: Any, bootstrap: int) -> None:
    if not 0 < retain <= 1:
        raise UsageError(f"retain is {retain}; it is the share of the full accuracy to keep, in (0, 1]")
    if convention not in _CONVENTIONS:
        raise UsageError(f"unknown convention {convention!r}; {nearest(str(convention), _CONVENTIONS)}")
    if (head is None) == (scorer is None):
        raise UsageError("give either a head (features → logits) or scorer= (features, labels → float)")
    if bootstrap < 0:
        raise UsageError(f"bootstrap is {bootstrap}; it is a number of resamples, 0 for none")


def _predictor(head: Any, x: torch.Tensor) -> tuple[Predict, tuple[torch.Tensor, torch.Tensor] | None]:
    """A function from features to float32 logits, and the (weight, bias) of a linear head."""
    parts = linear_parts(head, x.shape[1])
    if parts is None and isinstance(head, nn.Module) and not _takes(head, x):
        parts = linear_parts(find_head(head)[1], x.shape[1])  # not a head but a whole model: its last layer is
    if parts is not None:
        weight, bias = (part.to(x.device) for part in parts)
        return (lambda rows: torch.addmm(bias, rows, weight.T)), (weight, bias)
    if not callable(head):
        raise UsageError(f"the head is a {type(head).__name__}; give an nn.Linear, (weight, bias), or a callable")
    place = _device_of(head, x)

    def predict(rows: torch.Tensor) -> torch.Tensor:
        made = head(rows.to(place))  # rows go to the head: a caller's module is not moved
        if not isinstance(made, torch.Tensor) or made.ndim != 2 or len(made) != len(rows):
            shape = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise DataError(f"the head must return logits (samples × classes); for {len(rows)} samples it gave {shape}")
        return made.to(x.device, torch.float32)

    return predict, None


def _device_of(head: Any, x: torch.Tensor) -> torch.device:
    parameter = next(head.parameters(), None) if isinstance(head, nn.Module) else None
    return x.device if parameter is None else parameter.device


def _takes(head: nn.Module, x: torch.Tensor) -> bool:
    """Whether a module maps rows of features to rows of logits."""
    try:
        made = head(x[:2].to(_device_of(head, x)))
    except Exception:  # whatever a model raises on what is not its input
        return False
    return isinstance(made, torch.Tensor) and made.ndim == 2 and len(made) == len(x[:2])


def _dimension(counts: torch.Tensor, needed: float, basis: PrincipalAxes) -> tuple[int, tuple[str, ...]]:
    """The first crossing, and what should be said about it."""
    notes = []
    found = int(first_crossing(counts, torch.tensor(needed, dtype=torch.float64, device=counts.device)))
    width = len(basis.mean)
    if not found:  # at k = d the projection is the identity: only rounding can keep the last count below
        found = width
        notes.append("reached at k = d alone, where the projection is the identity")
    below = int((counts[found - 1 :] < needed - 1e-9).sum())
    if below:
        notes.append(f"not monotone: {below} larger k fall below the threshold again")
    numerical = int((basis.variances > width * 2.0**-52 * basis.variances[0]).sum())
    if found > numerical:
        notes.append(
            f"the features have only {numerical} directions of variance; the order of axes beyond is arbitrary"
        )
    return found, tuple(notes)


def _interval(resampled: torch.Tensor, needed: torch.Tensor, width: int) -> tuple[int, int] | None:
    """2.5 % and 97.5 % order statistics of the resamples' crossings; one that never crosses counts as d."""
    replicates = len(resampled)
    if not replicates:
        return None
    crossings = first_crossing(resampled, needed)
    ordered = torch.where(crossings == 0, width, crossings).sort().values
    return int(ordered[math.floor(0.025 * (replicates - 1))]), int(ordered[math.ceil(0.975 * (replicates - 1))])


def _variance_kept(basis: PrincipalAxes, k: int) -> float:
    return float(basis.variances[:k].sum() / basis.variances.sum())


def _provenance(device: torch.device, seed: int, bootstrap: int, fitted: int, apart: bool) -> dict[str, Any]:
    return {
        "versions": versions(),
        "device": device_name(device),
        "seed": seed,
        "bootstrap": bootstrap,
        "axes_from": f"{fitted} samples" + (" of fit_features" if apart else ", those measured on"),
        "dtype": "float32 logits, float64 axes",
    }


def _by_score(
    x: torch.Tensor,
    labels: Any,
    scorer: Callable[[torch.Tensor, torch.Tensor], float],
    basis: PrincipalAxes,
    retain: float,
    convention: str,
) -> ClassificationDimension:
    """The same for a task without logits: the scorer runs at every k."""
    y = torch.as_tensor(np.asarray(labels) if not isinstance(labels, torch.Tensor) else labels).to(x.device)
    if len(y) != len(x):
        raise DataError(f"{len(y)} labels for {len(x)} samples; give one label a sample")
    full = float(scorer(x, y))
    if not full > 0 or not math.isfinite(full):
        raise MeasurementError(f"the full score is {full:g}; a share of it is kept, so give a scorer that is positive")
    mean = basis.mean.to(torch.float32) if convention == "centred" else torch.zeros_like(x[0])
    axes = basis.axes.to(torch.float32)
    coordinates = (x - mean) @ axes
    projected = mean.expand_as(x).clone()
    scores = torch.zeros(x.shape[1], dtype=torch.float64)
    for k in range(x.shape[1]):
        projected.addmm_(coordinates[:, k : k + 1], axes[:, k : k + 1].T)
        scores[k] = float(scorer(projected.clone(), y))
    dimension, notes = _dimension(scores, retain * full, basis)
    return ClassificationDimension(
        dimension=dimension,
        ambient=x.shape[1],
        full_accuracy=full,
        curve=scores.numpy(),
        top5=None,
        full_top5=None,
        interval=None,
        retain=retain,
        convention=convention,
        samples=len(x),
        classes=None,
        variance_kept=_variance_kept(basis, dimension),
        notes=notes,
        provenance=_provenance(x.device, 0, 0, len(x), False),
    )
