"""Classification dimension: how many principal components of the final features keep the accuracy (paper, Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from rankscope._base.chance import majority
from rankscope._base.checks import choice_of
from rankscope._base.errors import DataError, MeasurementError, ModelError, UsageError
from rankscope._base.provenance import device_name, versions
from rankscope.features._inputs import as_labels, as_matrix, first_bad_row
from rankscope.features.accuracy_curve import RankSweep, rank_of_label
from rankscope.features.classification_result import ClassificationDimension, FoldedHead
from rankscope.features.heads import evaluated_copy, find_head, head_mismatch, linear_parts
from rankscope.features.principal import PrincipalAxes, principal_axes
from rankscope.features.sweep import Resampling, first_crossing, sweep_callable, sweep_linear
from rankscope.spectra.scale import power_of_two, times_two_to
from rankscope.views.chance import at_chance, kept_by_chance

__all__ = ["classification_dimension"]

Projection: TypeAlias = Literal["uncentred", "centred"]
Accuracy: TypeAlias = Literal["overall", "balanced"]
Predict: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
_PROJECTIONS = ("uncentred", "centred")
_ROWS = 4096
_ACCURACIES = ("overall", "balanced")
# Size of the mean beside the spread above which float32 leaves too few digits to the spread: float64 then
_LEVEL = 64.0
_ORDINARY = 30  # logits between 2**-30 and 2**30 are left as they come


def classification_dimension(
    features: Any,
    labels: Any,
    head: Any = None,
    *,
    retain: float = 0.95,
    projection: Projection = "uncentred",
    accuracy: Accuracy = "overall",
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
    head : nn.Linear, 1×1 convolution, (weight, bias), callable (N, d) → (N, c), or the whole classifier
        The classifier. Any callable works, at the price of running it at every k; a linear one is some hundred times
        faster. Of a timm, torchvision or Hugging Face model the head is found (``find_head``); a module that takes the
        features is itself the head. Modules are evaluated as a copy, in evaluation mode and in float32 or float64.
    retain : float
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
    _check_options(retain, projection, accuracy, head, scorer, bootstrap)
    x = as_matrix(features, "features", device=device)
    fitted = x if fit_features is None else as_matrix(fit_features, "fit_features", device=x.device)
    if fitted.shape[1] != x.shape[1]:
        raise DataError(
            f"fit_features have width {fitted.shape[1]}, features {x.shape[1]}; give the same layer of both"
        )
    basis = principal_axes(fitted, name="features" if fit_features is None else "fit_features")
    if scorer is not None:
        return _by_score(x, labels, scorer, basis, retain, projection)
    with torch.no_grad():
        predict, parts, dtype = _predictor(head, x)
        dtype = torch.float64 if _needs_float64(basis) else dtype
        if dtype != x.dtype:
            x = x.to(dtype)
            predict, parts, _ = _predictor(head, x)
        classes = int(predict(x[:2]).shape[1])
        y = as_labels(labels, len(x), classes, device=x.device, balanced=not allow_absent)
        error = None
        if logits is not None:
            error = head_mismatch(predict, x, torch.as_tensor(logits))
        ranks = torch.cat(
            [
                rank_of_label(_finite(predict(a), n), b)
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
        stop = (retain * full, retain * full_resampled) if stop_at_crossing else None
        axes = basis.axes.to(x.dtype)
        mean = basis.mean.to(x.dtype) if projection == "centred" else torch.zeros_like(x[0])
        inputs = x - mean if projection == "centred" else x
        folded = None
        if parts is not None:
            weight, bias = (part.to(x.dtype) for part in parts)
            products = basis.axes.T @ weight.double().T
            offset = bias.double() + weight.double() @ mean.double()
            scaled, terms, start = _scaled(inputs, products, offset)
            sweep = RankSweep(scaled, y, start.expand(len(x), -1).clone(), 5 if classes >= 10 else 1)
            counts = sweep_linear(sweep, axes, terms, resampling, stop=stop)
            folded = FoldedHead(axes.cpu(), products.to(x.dtype).cpu(), offset.to(x.dtype).cpu(), mean.cpu())
        else:
            counts = sweep_callable(inputs, y, mean, axes, predict, resampling, stop=stop)
    needed = retain * full
    dimension, notes = _dimension(counts.top1, needed, basis)
    cautions = _chance(y, full / len(x), retain, accuracy)
    top5 = (counts.top5 / len(x)).cpu().numpy() if classes >= 10 else None
    return ClassificationDimension(
        dimension=dimension,
        ambient=x.shape[1],
        full_accuracy=full / len(x),
        curve=(counts.top1 / len(x)).cpu().numpy(),
        top5=top5,
        full_top5=float(((ranks < 5) * weights).sum() / len(x)) if classes >= 10 else None,
        interval=_interval(counts.resampled, retain * full_resampled, x.shape[1]),
        retain=retain,
        projection=projection,
        accuracy_kind=accuracy,
        samples=len(x),
        classes=classes,
        variance_kept=_variance_kept(basis, dimension),
        head_error=error,
        notes=(*cautions, *notes),
        cautions=cautions,
        provenance=_provenance(x.device, seed, bootstrap, len(fitted), fit_features is not None, x.dtype),
        folded=folded,
    )


def _needs_float64(basis: PrincipalAxes) -> bool:
    """Whether the mean is so large beside the spread that float32 would cut off digits of the spread."""
    spread = float(basis.variances.sum()) ** 0.5
    return float((basis.mean / basis.unit).norm()) > _LEVEL * spread


def _scaled(
    inputs: torch.Tensor, products: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, and float64 products with the axes and offset, all in the features' dtype, for logits of ordinary size.

    The sweep takes norms, whose squares a dtype may not hold. Powers of two round nothing and keep the order of logits.
    """
    dtype = inputs.dtype
    size = float(inputs.abs().max()) or 1.0
    unit = power_of_two(size, dtype)
    # as exponents: the size of the logits itself may be no number
    largest = math.frexp(size)[1] + math.frexp(float(products.abs().max()))[1]
    if float(offset.abs().max()):
        largest = max(largest, math.frexp(float(offset.abs().max()))[1])
    down = largest if unit != 1 or abs(largest) > _ORDINARY else 0
    up = math.frexp(unit)[1] - 1
    return (
        inputs if unit == 1 else inputs / unit,
        times_two_to(products, up - down).to(dtype),
        times_two_to(offset, -down).to(dtype),
    )


def _check_options(retain: float, projection: str, accuracy: str, head: Any, scorer: Any, bootstrap: int) -> None:
    if not 0 < retain <= 1:
        raise UsageError(f"retain is {retain}; it is the share of the full accuracy to keep, in (0, 1]")
    choice_of(projection, "projection", _PROJECTIONS)
    choice_of(accuracy, "accuracy", _ACCURACIES)
    if scorer is not None and accuracy != "overall":
        raise UsageError(f"accuracy is {accuracy!r}, but scorer= says how answers are scored; give one of them")
    if (head is None) == (scorer is None):
        raise UsageError("give either a head (features → logits) or scorer= (features, labels → float)")
    if bootstrap < 0:
        raise UsageError(f"bootstrap is {bootstrap}; it is a number of resamples, 0 for none")


def _predictor(head: Any, x: torch.Tensor) -> tuple[Predict, tuple[torch.Tensor, torch.Tensor] | None, torch.dtype]:
    """A function from features to logits, the (weight, bias) of a linear head, and the dtype to compute in."""
    parts, called = linear_parts(head, x.shape[1]), head
    if parts is None and isinstance(head, nn.Module):
        called, trouble = evaluated_copy(head, x.dtype), None
        try:
            made = called(x[:2].to(_device_of(called, x)))
            taken = isinstance(made, torch.Tensor) and made.ndim == 2 and len(made) == len(x[:2])
        except Exception as error:  # whatever a model raises on what is not its input
            taken, trouble = False, error
        if not taken:  # not a head but a whole model: its last layer is
            try:
                parts = linear_parts(find_head(head)[1], x.shape[1])
            except ModelError:
                if trouble is None:
                    raise
                raise ModelError(
                    f"the head does not take features of width {x.shape[1]}: {_first(trouble)}"
                ) from trouble
    if parts is not None:
        dtype = torch.promote_types(parts[0].dtype, x.dtype)
        weight, bias = (part.to(x.device, dtype) for part in parts)
        return (lambda rows: torch.addmm(bias, rows.to(dtype), weight.T)), (weight, bias), dtype
    if not callable(called):
        raise UsageError(f"the head is a {type(head).__name__}; give an nn.Linear, (weight, bias), or a callable")
    place = _device_of(called, x)

    def predict(rows: torch.Tensor) -> torch.Tensor:
        try:
            made = called(rows.to(place))  # rows go to the head: a caller's module is not moved
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ModelError(
                f"the head fails on {str(rows.dtype)[6:]} features of shape {tuple(rows.shape)}: {_first(error)}"
            ) from error
        if not isinstance(made, torch.Tensor) or made.ndim != 2 or len(made) != len(rows):
            shape = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise DataError(f"the head must return logits (samples × classes); for {len(rows)} samples it gave {shape}")
        if made.is_complex():
            raise DataError(f"the head gives {str(made.dtype)[6:]} logits; give a head whose logits are real")
        return made.to(x.device, torch.promote_types(made.dtype, torch.float32))

    if not isinstance(head, nn.Module):
        _check_function(predict, x)
    return predict, None, x.dtype


def _check_function(predict: Predict, x: torch.Tensor) -> None:
    """Raise ``ModelError`` for a function whose answer is random, or depends on the other samples of the batch."""
    rows = x[: min(len(x), 256)]
    first, again, alone = predict(rows), predict(rows), predict(rows[:2])
    size = float(first.abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
    for other, why in ((again, "differs from call to call"), (alone, "depends on the other samples of a batch")):
        gap = (first[: len(other)] - other).abs().nan_to_num(0.0)
        if float(gap.max()) > 1e-2 * size:
            raise ModelError(
                f"what the head function gives for a sample {why}; put the modules it calls into evaluation mode "
                "(.eval()), or give the module itself"
            )


def _finite(logits: torch.Tensor, block: int) -> torch.Tensor:
    bad = first_bad_row(logits)
    if bad is not None:
        raise DataError(f"the head gives a NaN or infinite logit for sample {block * _ROWS + bad}; mend the head")
    return logits


def _weights(labels: torch.Tensor, accuracy: str) -> torch.Tensor:
    """What each sample counts, (N,) float64, N in all: 1, or the same for each class that occurs."""
    if accuracy == "overall":
        return torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    seen = torch.bincount(labels).to(torch.float64)
    return len(labels) / (seen[labels] * int((seen > 0).sum()))


def _chance(labels: torch.Tensor, full: float, retain: float, accuracy: str) -> tuple[str, ...]:
    """Whether always giving one answer is as good as the head, or as what is to be kept of it."""
    share, most = majority(labels, accuracy)
    if full <= share + 1e-12:
        return (at_chance(full, share, most, accuracy),)
    if retain * full <= share + 1e-12:
        return (kept_by_chance(retain * full, share, most, accuracy),)
    return ()


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def _device_of(head: Any, x: torch.Tensor) -> torch.device:
    parameter = next(head.parameters(), None) if isinstance(head, nn.Module) else None
    return x.device if parameter is None else parameter.device


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


def _provenance(
    device: torch.device, seed: int, bootstrap: int, fitted: int, apart: bool, dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "versions": versions(),
        "device": device_name(device),
        "seed": seed,
        "bootstrap": bootstrap,
        "axes_from": f"{fitted} samples" + (" of fit_features" if apart else ", those measured on"),
        "dtype": f"{str(dtype)[6:]} logits, float64 axes",
    }


def _by_score(
    x: torch.Tensor,
    labels: Any,
    scorer: Callable[[torch.Tensor, torch.Tensor], float],
    basis: PrincipalAxes,
    retain: float,
    projection: str,
) -> ClassificationDimension:
    """The same for a task without logits: the scorer runs at every k."""
    y = torch.as_tensor(np.asarray(labels) if not isinstance(labels, torch.Tensor) else labels).to(x.device)
    if len(y) != len(x):
        raise DataError(f"{len(y)} labels for {len(x)} samples; give one label a sample")
    full = float(scorer(x, y))
    if not full > 0 or not math.isfinite(full):
        raise MeasurementError(f"the full score is {full:g}; a share of it is kept, so give a scorer that is positive")
    mean = basis.mean.to(x.dtype) if projection == "centred" else torch.zeros_like(x[0])
    axes = basis.axes.to(x.dtype)
    coordinates = (x - mean) @ axes
    projected = mean.expand_as(x).clone()
    scores = torch.zeros(x.shape[1], dtype=torch.float64)
    for k in range(x.shape[1]):
        projected.addmm_(coordinates[:, k : k + 1], axes[:, k : k + 1].T)
        score = float(scorer(projected.clone(), y))
        scores[k] = score if not math.isnan(score) else -math.inf  # a NaN is no score: it never reaches the threshold
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
        projection=projection,
        samples=len(x),
        classes=None,
        variance_kept=_variance_kept(basis, dimension),
        notes=notes,
        provenance=_provenance(x.device, 0, 0, len(x), False, x.dtype),
    )
