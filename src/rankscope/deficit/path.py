"""Down the regularisation path: all of it for one class, or until a share of the class's accuracy is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rankscope._base.progress import Reporter, watched
from rankscope.deficit.accuracy import Accuracies, Rivals
from rankscope.deficit.problem import Problem
from rankscope.deficit.regularisation_path import RegularisationPath

__all__ = ["Walk", "path_of", "ratios", "walk"]


@dataclass(frozen=True)
class Walk:
    """What a walk down the path found for each class of a batch; B classes, P steps.

    ``chosen`` (B,) is the first step that keeps the accuracy, −1 where none does. ``used``, ``all`` and ``positive``
    (B, P) hold the number of dependencies and the accuracies; NaN after a class was finished or where the gap
    was not reached.
    """

    eta: torch.Tensor
    coefficients: torch.Tensor
    gap: torch.Tensor
    residual: torch.Tensor
    chosen: torch.Tensor
    used: torch.Tensor
    all: torch.Tensor
    positive: torch.Tensor


def ratios(points: int, floor: float) -> list[float]:
    """η/η_max from just under 1 down to ``floor``, evenly in the logarithm.

    >>> [round(r, 3) for r in ratios(2, 0.01)]
    [0.1, 0.01]
    """
    return [float(floor ** ((k + 1) / points)) for k in range(points)]


def keeps(found: Accuracies, original: Accuracies, keep: float) -> torch.Tensor:
    """Whether positive *and* overall accuracy stay at ``keep`` of the original; never where there was none to keep.

    Positive samples alone would be satisfied by a replaced logit that always wins.
    """
    enough = (found.positive >= keep * original.positive) & (found.all >= keep * original.all)
    return enough & (original.positive > 0)


def walk(problem: Problem, rivals: Rivals, steps: list[float], keep: float, *, tol: float, report: Reporter) -> Walk:
    """Go down η = step·η_max for every class until it keeps its accuracy; finished classes leave the batch."""
    classes, top = problem.classes, problem.eta_max
    count = len(classes)
    original = rivals.original(classes)
    coefficients = torch.zeros(count, rivals.logits.shape[1], dtype=torch.float64, device=classes.device)
    eta, gap, residual = top.clone(), torch.zeros_like(top), torch.zeros_like(top)
    chosen = torch.full((count,), -1, device=classes.device)
    used, overall, positive = (torch.full((count, len(steps)), torch.nan, dtype=torch.float64) for _ in range(3))
    rows = torch.arange(count, device=classes.device)
    for step, share in watched(enumerate(steps), lambda _: 1, lambda: len(steps), report, "penalties"):
        if not len(rows):
            break
        eta[rows] = (share * top[rows]).clamp_min(torch.finfo(torch.float64).tiny)
        found = problem.solve(rows, eta[rows], start=coefficients[rows] if step else None, tol=tol)
        coefficients[rows], gap[rows], residual[rows] = found.coefficients, found.gap, found.residual
        accuracies = rivals.replaced(classes[rows], found.coefficients, problem.intercept(rows, found.coefficients))
        solved = found.gap <= tol
        there = rows[solved].cpu()
        used[there, step] = (found.coefficients[solved] != 0).sum(1).to(torch.float64).cpu()
        overall[there, step] = accuracies.all[solved].cpu()
        positive[there, step] = accuracies.positive[solved].cpu()
        own = Accuracies(original.all[rows], original.positive[rows])
        done = solved & keeps(accuracies, own, keep)
        chosen[rows[done]] = step
        rows = rows[~done]
    return Walk(eta, coefficients, gap, residual, chosen, used, overall, positive)


def path_of(
    problem: Problem, rivals: Rivals, row: int, name: str, steps: list[float], *, tol: float
) -> RegularisationPath:
    """The whole path of one class of a batch, each solution the start of the next."""
    rows = torch.tensor([row], device=problem.classes.device)
    top = problem.eta_max[rows]
    start: torch.Tensor | None = None
    lines: list[list[float]] = []
    weights: list[Any] = []
    for share in steps:
        eta = (share * top).clamp_min(torch.finfo(torch.float64).tiny)
        found = problem.solve(rows, eta, start=start, tol=tol)
        start = found.coefficients
        accuracy = rivals.replaced(problem.classes[rows], start, problem.intercept(rows, start))
        held_out = problem.r2_held_out(rows, start)
        parts = (eta, problem.r2(rows, found.residual)[0], held_out, found.gap, accuracy.all, accuracy.positive)
        lines.append([float(v) for v in parts])
        weights.append(start[0].cpu().numpy())
    columns = np.array(lines).T
    return RegularisationPath(int(problem.classes[row]), name, columns[0], float(top), np.array(weights), *columns[1:])
