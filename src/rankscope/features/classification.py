"""Classification dimension: how many principal components of the final features keep the accuracy (paper, Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from rankscope._base.arrays import dense
from rankscope._base.chance import ACCURACIES, Accuracy, against_one_answer
from rankscope._base.checks import DeviceLike, choice_of, count_of, device_of, number_of, seed_of
from rankscope._base.errors import DataError, MeasurementError, UsageError
from rankscope._base.progress import Progress, reporting
from rankscope.features._inputs import as_labels, as_matrix, first_bad_row
from rankscope.features.accuracy_curve import RankSweep, rank_of_label
from rankscope.features.called_modules import left_as_they_are
from rankscope.features.classification_result import ClassificationDimension, FoldedHead
from rankscope.features.crossing import first_dimension, interval, variance_kept
from rankscope.features.heads import head_mismatch
from rankscope.features.logit_scale import needs_float64, scaled
from rankscope.features.predictor import predictor
from rankscope.features.principal import principal_axes
from rankscope.features.scored import by_score, made_of
from rankscope.features.sweep import Resampling, sweep_callable, sweep_linear

__all__ = ["classification_dimension"]

Projection: TypeAlias = Literal["uncentred", "centred"]
_PROJECTIONS = ("uncentred", "centred")
_ROWS = 4096


def classification_dimension(
    features: Any,
    labels: Any,
    head: Any = None,
    *,
    keep: float = 0.95,
    projection: Projection = "uncentred",
    accuracy: Accuracy = "overall",
    fit_features: Any = None,
    scorer: Callable[[torch.Tensor, torch.Tensor], float] | None = None,
    logits: Any = None,
    bootstrap: int = 200,
    seed: int = 0,
    least: int = 1,
    stop_at_crossing: bool = False,
    allow_absent: bool = False,
    device: DeviceLike = None,
    progress: bool | Progress | None = None,
) -> ClassificationDimension:
    """Least k for which the projection on the top k principal components keeps ``keep`` × the full accuracy.

    Exact at every k: accuracy is not monotone in k, so nothing is bisected or skipped. The axes are eigenvectors of the
    float64 covariance; logits are float32 (float64 where features or head have that many digits, or a mean large beside
    their spread), added up component by component, so an order of two logits that rests on their last bits (relative
    1e-6) may differ from that of another summation. Equal logits count as ``torch.argmax``
    breaks them: the lower class index first, for top-5 too. At k = d the projection is the identity.

    Parameters
    ----------
    features : array, (N, d)
        Final features: what goes into the classifier. float64 is kept; half precision is computed with in float32.
    labels : array, (N,)
        Class indices; for a ``scorer`` any labels it understands.
    head : nn.Linear, 1×1 convolution, weight, (weight, bias), callable (N, d) → (N, c), or the whole classifier
        The classifier; weights are (c, d). A linear one with one output is binary: it answers 1 where that is above 0.
        Any callable works, at the price of running it at every k; a linear one is some hundred times faster. Of a timm,
        torchvision or Hugging Face model the head is found (``find_head``); a module that takes the features is itself
        the head. Modules are evaluated as a copy, in evaluation mode and in float32 or float64.
    keep : float
        Share of the full accuracy to keep, in (0, 1]; 0.95 in Table 1.
    projection : "uncentred" or "centred"
        Both take the axes from the centred covariance. ``uncentred`` projects the features as they are, as published:
        the part of their mean outside the k axes is lost. ``centred`` projects features − mean and
        adds the mean again.
    accuracy : "overall" or "balanced"
        Share of all samples that are right, or the mean over the classes of the share of each. Where most samples have
        one label, few components keep the overall accuracy, because answering that label always does.
    fit_features : array, (M, d), optional
        Data for the axes, when they should not come from the samples that the accuracy is measured on.
    scorer : callable (features, labels) → float, optional
        In place of a head, for tasks without one; larger is better, and the full score must be positive. No bootstrap.
    logits : array, (N, c), optional
        Stored logits: the head is checked against them.
    bootstrap : int
        Resamples for the 95% interval; 0 for none.
    seed : int
        Of the resamples.
    least : int
        The first k that is tried: 1, or 0 as in the published code, where the head sees no component (zeros, or the
        mean under ``centred``) and gives every sample one answer. It can be enough only where that answer is.
    stop_at_crossing : bool
        End the curve soon after the crossing (and those of 98% of the resamples) instead of at d.
    allow_absent : bool
        Accept classes without a sample, and fewer samples than classes.
    device : torch.device or str, optional
        Where to compute; by default where the features are.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

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
    _check_options(projection, accuracy, head, scorer)
    keep = number_of(keep, "keep", above=0, most=1)
    least = count_of(least, "least", least=0, most=1)
    bootstrap, seed = count_of(bootstrap, "bootstrap", least=0, most=10**7), seed_of(seed)
    x = as_matrix(features, "features", device=None if device is None else device_of(device))
    fitted = x if fit_features is None else as_matrix(fit_features, "fit_features", device=x.device)
    if fitted.shape[1] != x.shape[1]:
        raise DataError(
            f"fit_features have width {fitted.shape[1]}, features {x.shape[1]}; give the same layer of both"
        )
    basis = principal_axes(fitted, name="features" if fit_features is None else "fit_features")
    if scorer is not None:
        with left_as_they_are(scorer):
            return by_score(x, labels, scorer, basis, keep, projection, least=least)
    with torch.no_grad(), left_as_they_are(head), reporting(progress, "classification dimension") as report:
        predict, parts, dtype = predictor(head, x)
        dtype = torch.float64 if needs_float64(basis) else dtype
        if dtype != x.dtype:
            x = x.to(dtype)
            if parts is not None or isinstance(head, nn.Module):  # a function takes what it was made for
                predict, parts, _ = predictor(head, x)
        classes = int(predict(x[:2]).shape[1])
        y = as_labels(labels, len(x), classes, device=x.device, balanced=not allow_absent)
        error = None
        if logits is not None:
            error = head_mismatch(predict, x, dense(logits, "logits"))
        ranks = torch.cat(
            [
                rank_of_label(_finite(predict(a), n, head), b)
                for n, (a, b) in enumerate(zip(x.split(_ROWS), y.split(_ROWS), strict=True))
            ]
        )
        weights = _weights(y, accuracy)
        right = (ranks == 0).to(torch.float64) * weights
        full = float(right.sum())
        if full == 0:
            raise MeasurementError(
                f"the head is right on none of {len(x)} samples; check that labels and head use the same class order"
            )
        resampling = Resampling.draw(bootstrap, len(x), seed, x.device, weights, y if accuracy == "balanced" else None)
        full_resampled = resampling.total(ranks == 0)
        stop = (keep * full, keep * full_resampled) if stop_at_crossing else None
        axes = basis.axes.to(x.dtype)
        mean = basis.mean.to(x.dtype) if projection == "centred" else torch.zeros_like(x[0])
        inputs = x - mean if projection == "centred" else x
        first = None
        if least == 0:
            answer = _finite(predict(mean[None]), 0, head)
            first = rank_of_label(answer.expand(len(y), -1), y) == 0
        folded = None
        if parts is not None:
            weight, bias = (part.to(x.dtype) for part in parts)
            products = basis.axes.T @ weight.double().T
            offset = bias.double() + weight.double() @ mean.double()
            rows, terms, start = scaled(inputs, products, offset)
            sweep = RankSweep(rows, y, start.expand(len(x), -1).clone(), 5 if classes >= 10 else 1)
            counts = sweep_linear(sweep, axes, terms, resampling, stop=stop, report=report)
            folded = FoldedHead(*(part.to(x.dtype).cpu().numpy() for part in (axes, products, offset, mean)))
        else:
            counts = sweep_callable(inputs, y, mean, axes, predict, resampling, stop=stop, report=report)
    needed = keep * full
    without = None if first is None else float(resampling.counted(first[:, None]))
    without_resampled = None if first is None else resampling.total(first[:, None])[:, 0]
    dimension, facts = first_dimension(counts.top1, needed, basis, without=without)
    chance = against_one_answer(y, full / len(x), keep, accuracy, of="head")
    top5 = (counts.top5 / len(x)).cpu().numpy() if classes >= 10 else None
    return ClassificationDimension(
        dimension=dimension,
        ambient=x.shape[1],
        full_accuracy=full / len(x),
        curve=(counts.top1 / len(x)).cpu().numpy(),
        top5=top5,
        full_top5=float(((ranks < 5) * weights).sum() / len(x)) if classes >= 10 else None,
        interval=interval(counts.resampled, keep * full_resampled, x.shape[1], without=without_resampled),
        keep=keep,
        projection=projection,
        accuracy_kind=accuracy,
        samples=len(x),
        classes=classes,
        variance_kept=variance_kept(basis, dimension),
        head_error=error,
        facts=(*chance, *facts),
        provenance=made_of(x, len(fitted), apart=fit_features is not None, seed=seed, bootstrap=bootstrap),
        folded=folded,
        without=None if without is None else without / len(x),
    )


def _check_options(projection: str, accuracy: str, head: Any, scorer: Any) -> None:
    choice_of(projection, "projection", _PROJECTIONS)
    choice_of(accuracy, "accuracy", ACCURACIES)
    if scorer is not None and accuracy != "overall":
        raise UsageError(f"accuracy is {accuracy!r}, but scorer= also scores the answers; give one of them")
    if (head is None) == (scorer is None):
        raise UsageError("give either a head (features → logits) or scorer= (features, labels → float)")
    if scorer is not None and not callable(scorer):
        raise UsageError(f"scorer is a {type(scorer).__name__}; give a function (features, labels) → float")


def _finite(logits: torch.Tensor, block: int, head: Any) -> torch.Tensor:
    bad = first_bad_row(logits)
    if bad is None:
        return logits
    held = (*head.named_parameters(), *head.named_buffers()) if isinstance(head, nn.Module) else ()
    where = next((name for name, part in held if not bool(torch.isfinite(part).all())), None)
    of = "" if where is None else f", and its {where!r} holds one"
    raise DataError(f"the head gives a NaN or infinite logit for sample {block * _ROWS + bad}{of}; fix the head")


def _weights(labels: torch.Tensor, accuracy: str) -> torch.Tensor:
    """What each sample counts, (N,) float64, N in all: 1, or the same for each class that occurs."""
    if accuracy == "overall":
        return torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    seen = torch.bincount(labels).to(torch.float64)
    return len(labels) / (seen[labels] * int((seen > 0).sum()))
