"""``independence_deficit``: which classes' logits are linear combinations of a few others, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from rankscope._base.arrays import dense
from rankscope._base.chance import ACCURACIES, Accuracy, against_one_answer
from rankscope._base.checks import DeviceLike, choice_of, count_of, number_of, seed_of
from rankscope._base.errors import DataError, UsageError, parameter
from rankscope._base.progress import Progress, Reporter, reporting, watched
from rankscope._base.provenance import device_name, versions
from rankscope.deficit.accuracy import Accuracies, Rivals, rivals
from rankscope.deficit.dependency import ClassDependency, Exactness, PathPoint, Status
from rankscope.deficit.moments import Moments, moments
from rankscope.deficit.null import ENOUGH
from rankscope.deficit.path import Walk, path_of, ratios, walk
from rankscope.deficit.problem import SAMPLES_USED, Problem, problems
from rankscope.deficit.regularisation_path import RegularisationPath
from rankscope.deficit.sample import Sample, check_sample
from rankscope.deficit.table import DependencyTable
from rankscope.spectra import spectrum_of_gram

__all__ = ["independence_deficit"]

_PAPER_ETA = 20.0  # paper §6.2; on the scale of the uncentred logits of positive samples
_LARGEST_GAP, _LARGEST_FLOOR = 0.5, 0.99  # at 1 nothing is solved, and the path has no length
_NULLS = ("within_class", "free")
# R² must exceed the null's mean by four standard deviations: of 1,000 independent classes 0.03 pass, were it Gaussian
_SIGMAS = 4.0


def independence_deficit(
    logits: Any,
    labels: Any,
    *,
    eta: float | None = None,
    samples_used: str = "all",
    classes: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    features: Any = None,
    feature_dimension: int | None = None,
    held_out: Any = 0.2,
    permutations: int = 5,
    null: str = "within_class",
    keep: float = 0.9,
    accuracy: Accuracy = "overall",
    path_points: int = 16,
    path_floor: float = 1e-2,
    tol: float = 1e-6,
    seed: int = 0,
    device: DeviceLike = None,
    progress: bool | Progress | None = None,
) -> DependencyTable:
    """Solve min_λ mean (z_i − Σ_{j≠i} λ_j z_j)² + η‖λ‖₁ exactly for every class i (paper, Eq. 11 and 12).

    Parameters
    ----------
    logits : array or torch.Tensor
        (N, c) floating, N ≥ c ≥ 2.
    labels : array or torch.Tensor
        (N,) integers in 0…c−1.
    eta : float, optional
        Penalty in units of the squared logits; the objective has no ½ (scikit-learn's ``alpha`` is η/2). None means
        20 under ``reference`` (paper §6.2), and under ``all`` the largest η on a path of ``path_points`` values from
        η_max down to ``path_floor``·η_max that keeps ``keep`` of the accuracy, on the class and on all samples.
        Where float64 cannot hold the squares of the logits, the η and η_max of the result belong to logits divided by
        its ``unit``, a power of two; everything else is in the units of the logits.
    samples_used : str
        ``all`` (default): all samples, with an intercept. ``reference``: the class's positive samples, no intercept,
        as in the authors' code, but solved exactly.
    classes, class_names : sequence, optional
        Classes to analyse (default all), and names of all c classes.
    features, feature_dimension : optional
        The final features (N, d) or just d: named as the reason where a class is an exact combination of
        the others, which is decided for each class from the logits themselves.
    held_out : float or (logits, labels)
        Share of each class kept out of the fit (default 0.2, rounded down), or samples of your own; 0 fits all.
        Accuracies are over all N samples in every case.
    permutations, null : int, str
        Permutations of the target for the null (default 5; 0 for none), at the same η. ``within_class`` (default)
        keeps class means, which alone make logits predictable from each other, and removes all else; ``free`` removes
        both. With few samples a class, the within-class null cannot tell class means from the rest and stays high.
    accuracy : str
        What the accuracy over all samples is: ``overall`` (default), the share that is right, or ``balanced``, the mean
        over the classes of that share. Where most samples have one label, the overall accuracy is easily kept.
    tol : float
        Relative duality gap above which a class is marked ``not converged``; default 1e-6.
    seed : int
        Of the split and the permutations.
    device : torch.device or str, optional
        Where to compute; default where the logits are. float64 throughout.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    DataError
        Labels outside the classes, fewer samples than classes, a class without samples, one class only, constant or
        non-finite logits (class and sample are named).
    UsageError
        Unknown samples_used or null, class out of range, or an option outside its range.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> z = torch.randn(400, 4, generator=g, dtype=torch.float64)
    >>> z[:, 0] = z[:, 1] - z[:, 2]
    >>> table = independence_deficit(z, z.argmax(1), eta=0.01, permutations=3)
    >>> table[0].depends_on, table[0].status
    ((1, 2), <Status.DEPENDENT: 'dependent'>)
    """
    choice_of(samples_used, "samples_used", SAMPLES_USED)
    choice_of(null, "null", _NULLS)
    choice_of(accuracy, "accuracy", ACCURACIES)
    eta = None if eta is None else number_of(eta, "eta", above=0)
    permutations, seed = count_of(permutations, "permutations", least=0, most=10**7), seed_of(seed)
    keep, tol = number_of(keep, "keep", above=0, most=1), number_of(tol, "tol", above=0, most=_LARGEST_GAP)
    path_points = count_of(path_points, "path_points", most=10**5)
    path_floor = number_of(path_floor, "path_floor", above=0, most=_LARGEST_FLOOR)
    sample = check_sample(
        logits, labels, classes=classes, class_names=class_names, held_out=held_out, seed=seed, device=device
    )
    dimension = _dimension(features, feature_dimension, len(sample.labels))
    if eta is None and samples_used == "reference":
        eta = _PAPER_ETA
    with torch.no_grad(), reporting(progress, "independence deficit") as report:
        fitted = moments(sample.logits, sample.fit)
        known = rivals(sample.logits, sample.labels, accuracy)
        rank = spectrum_of_gram(fitted.gram * fitted.count, (fitted.count, len(fitted.gram))).rank("paper").value
        generator = torch.Generator().manual_seed(seed)
        steps = ratios(path_points, path_floor)
        rows: list[ClassDependency] = []
        for problem in problems(sample, samples_used, fitted):
            found = (
                _fixed(problem, _in_units(eta, sample.unit), tol)
                if eta is not None
                else walk(problem, known, steps, keep, tol=tol, report=report)
            )
            nulls = _nulls(problem, found.eta, null, permutations, generator, tol, report)
            rows += _rows(problem, sample, known, found, nulls, null, dimension, tol, chosen=eta is None)
    return DependencyTable(
        rows=tuple(rows),
        samples_used=samples_used,
        eta=eta,
        keep=keep if eta is None else None,
        tol=tol,
        samples=len(sample.fit),
        held_out_samples=len(sample.test),
        n_classes=sample.width,
        logit_rank=rank,
        feature_dimension=dimension,
        null=null,
        permutations=permutations,
        seed=seed,
        unit=sample.unit,
        accuracy_kind=accuracy,
        facts=against_one_answer(
            sample.labels,
            float(known.original(sample.classes[:1]).all),
            keep if eta is None else None,
            accuracy,
            of="logits",
        ),
        device=device_name(sample.logits.device),
        versions=versions(),
    ).following(partial(_follow, sample, known, samples_used, fitted, tol))


def _dimension(features: Any, dimension: int | None, samples: int) -> int | None:
    if features is not None:
        shape = tuple(dense(features, "features").shape)
        if len(shape) != 2 or shape[0] != samples:
            raise DataError(f"features have shape {shape}; {samples} samples need ({samples}, dimensions)")
        if dimension is not None and dimension != shape[1]:
            raise UsageError(f"feature_dimension is {dimension}, but features have {shape[1]}; give one of them")
        dimension = int(shape[1])
    return None if dimension is None else count_of(dimension, "feature_dimension")


def _in_units(eta: float, unit: float) -> float:
    """η for logits divided by ``unit``, at most the largest float.

    Raises
    ------
    UsageError
        A penalty that is nothing beside the squares of such logits.
    """
    scaled = min(eta / unit / unit, torch.finfo(torch.float64).max)
    if scaled < torch.finfo(torch.float64).tiny:
        raise UsageError(
            f"eta is {eta:g}, which is negligible against the squares of logits that reach {unit:.1g}; divide the "
            f"logits by a power of two, or leave {parameter('eta')} out under {parameter('samples_used', 'all')}"
        )
    return scaled


def _fixed(problem: Problem, eta: float, tol: float) -> Walk:
    """The solutions at one η, in the shape of a walk of no steps."""
    rows = torch.arange(len(problem.classes), device=problem.classes.device)
    etas = torch.full_like(problem.eta_max, eta)
    found = problem.solve(rows, etas, start=None, tol=tol)
    empty = torch.empty(len(rows), 0, dtype=torch.float64)
    return Walk(etas, found.coefficients, found.gap, found.residual, torch.zeros_like(rows), empty, empty, empty)


def _nulls(
    problem: Problem,
    eta: torch.Tensor,
    kind: str,
    count: int,
    generator: torch.Generator,
    tol: float,
    report: Reporter,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred and uncentred null R², (B, permutations)."""
    rows = torch.arange(len(problem.classes), device=problem.classes.device)
    turns = watched(range(count), lambda _: 1, lambda: count, report, "permutations")
    drawn = [problem.null(rows, eta, kind, generator, tol=tol) for _ in turns]
    if not drawn:
        empty = torch.full((len(rows), 1), torch.nan, dtype=torch.float64)
        return empty, empty
    return torch.stack([d[0] for d in drawn], 1).cpu(), torch.stack([d[1] for d in drawn], 1).cpu()


def _limit(null: torch.Tensor) -> torch.Tensor:
    """Null mean + 4 standard deviations, each class's own or the root mean square over classes if that is larger.

    A few permutations estimate one class's deviation badly; all classes together do it well.
    """
    deviation = null.std(1) if null.shape[1] > 1 else torch.zeros(len(null), dtype=null.dtype)
    pooled = deviation.square().nanmean().sqrt()
    return null.mean(1) + _SIGMAS * torch.maximum(deviation, pooled.expand_as(deviation))


def _rows(
    problem: Problem,
    sample: Sample,
    known: Rivals,
    found: Walk,
    nulls: tuple[torch.Tensor, torch.Tensor],
    null: str,
    dimension: int | None,
    tol: float,
    *,
    chosen: bool,
) -> list[ClassDependency]:
    every = torch.arange(len(problem.classes), device=problem.classes.device)
    intercept = problem.intercept(every, found.coefficients)
    before: Accuracies = known.original(problem.classes)
    after = known.replaced(problem.classes, found.coefficients, intercept)
    centred, uncentred = problem.r2(every, found.residual)
    columns = [
        v.cpu().tolist()
        for v in (found.eta, problem.eta_max, intercept, centred, uncentred,
                  problem.r2_held_out(every, found.coefficients), nulls[0].mean(1), nulls[0].amax(1), _limit(nulls[0]),
                  nulls[1].mean(1), found.gap, before.all, after.all, before.positive, after.positive)
    ]  # fmt: skip
    exact, movable = problem.exact().tolist(), problem.movable(null).tolist()
    weights, failed = found.coefficients.cpu(), (found.chosen < 0).tolist()
    counts = problem.counts.tolist()
    out = []
    for b, i in enumerate(problem.classes.tolist()):
        (eta, top, constant, r2, r2u, test, mean, most, limit, mean_u, gap, a0, a1, p0, p1) = (c[b] for c in columns)
        order = weights[b].abs().argsort(descending=True, stable=True)
        used = order[: int((weights[b] != 0).sum())].tolist()
        # without held-out samples R² alone has to exceed the null
        # a difference within the solver's tolerance is none
        beyond = r2 > limit + tol and (math.isnan(test) or test > mean)
        trivial = (
            None if not exact[b]
            else Exactness.SAMPLES if counts[b] < sample.width
            else Exactness.FEATURES if dimension is not None and dimension < sample.width
            else Exactness.LOGITS
        )  # fmt: skip
        status = (
            Status.NOT_CONVERGED if gap > tol
            else Status.NO_ETA_KEEPS if failed[b]
            else Status.ALL_ZERO if not used
            else Status.NO_NULL if math.isnan(mean) or movable[b] < ENOUGH
            else Status.DEPENDENT if beyond
            else Status.NOT_BEYOND_NULL
        )  # fmt: skip
        tried = [
            PathPoint(int(n), a, p)
            for n, a, p in zip(*(m[b].tolist() for m in (found.used, found.all, found.positive)), strict=True)
            if chosen and not math.isnan(n)
        ]
        out.append(
            ClassDependency(
                i, sample.names[i], status, eta, top, tuple(used), tuple(sample.names[j] for j in used),
                tuple(float(weights[b, j]) for j in used), constant * sample.unit,
                r2, r2u, test, mean, most, limit, mean_u, gap,
                a0, a1, p0, p1, trivial, tuple(tried),
            )
        )  # fmt: skip
    return out


def _follow(
    sample: Sample, known: Rivals, samples_used: str, fitted: Moments, tol: float, index: int, points: int, floor: float
) -> RegularisationPath:
    for problem in problems(sample, samples_used, fitted):
        at = (problem.classes == index).nonzero()
        if len(at):
            with torch.no_grad():
                return path_of(problem, known, int(at[0]), sample.names[index], ratios(points, floor), tol=tol)
    raise UsageError(f"class {index} is not in this table; name it in classes=")
