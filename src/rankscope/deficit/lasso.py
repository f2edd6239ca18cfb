"""Exact Lasso solutions of many problems at once, each with its duality gap.

    min_λ  mean (z − Σ_j λ_j z_j)² + η ‖λ‖₁        (paper, Eq. 11; no ½, so scikit-learn's alpha is η/2)

Three things alternate. ADMM finds the signs: one shared factorisation turns an iteration of all problems into two
matrix products. An active-set step then solves each problem exactly on its support, drops coordinates whose sign
came out wrong and adds those that break the optimality conditions. The duality gap, from the Gram matrix alone, says
when a problem is finished and takes it out of the batch. What is returned is judged by that gap only, so a poor
iterate can cost time, never correctness. Problems that this leaves, because their columns determine each other and η
is small, are descended one at a time (``active_set``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankscope.deficit.active_set import active_set
from rankscope.deficit.operators import Quadratic
from rankscope.deficit.scaled import ScaledProblems

__all__ = ["LassoSolution", "eta_max", "solve_lasso"]

_RELAX = 1.7  # over-relaxation of ADMM (Boyd et al. 2011, §3.4.3: 1.5 to 1.8)
_ROUND = 20  # ADMM iterations between two attempts at the exact solution; measured
_POLISH = 4  # active-set steps per attempt
_READY = 0.1  # attempt a problem when ADMM's own gap is below this; measured


@dataclass(frozen=True)
class LassoSolution:
    """Solutions of a batch: ``coefficients`` (B, c), relative duality ``gap`` (B,), ``residual`` mean squares (B,)."""

    coefficients: torch.Tensor
    gap: torch.Tensor
    residual: torch.Tensor


def eta_max(cross: torch.Tensor, exclude: torch.Tensor) -> torch.Tensor:
    """Least η with an all-zero solution, 2·max_{j≠i} |mean z_j z_i|, for cross moments (B, c) and own columns (B,).

    >>> eta_max(torch.tensor([[9.0, -2.0, 1.0]]), torch.tensor([0]))
    tensor([4.])
    """
    return 2 * cross.abs().scatter(1, exclude[:, None], 0.0).amax(1)


class _Admm:
    """Scaled ADMM with a penalty ρ per problem, balanced so that primal and dual residual stay within a factor 5."""

    def __init__(self, batch: ScaledProblems, start: torch.Tensor) -> None:
        self.batch = batch
        finite = torch.where(batch.weight.isinf(), 0.0, batch.weight)
        self.rho = 8 * finite.mean(1, keepdim=True).sqrt()  # measured: 3 at T = 0.12, 1 at T = 0.012
        self.z = start.clone()
        # at the solution ρu equals the negative gradient, so a warm start begins with it
        self.u = (2 * (batch.h - batch.form.apply(start)) / self.rho).clamp(
            -batch.weight / self.rho, batch.weight / self.rho
        )

    def run(self, iterations: int) -> None:
        twice = 2 * self.batch.h
        edge = self.batch.weight / self.rho
        x = old = self.z
        for _ in range(iterations):
            x = self.batch.form.ridge_solve(torch.addcmul(twice, self.z - self.u, self.rho), self.rho)
            old = self.z
            v = torch.lerp(old, x, _RELAX).add_(self.u)
            # soft thresholding by t is v − clamp(v, −t, t), and the clamped part is the new scaled dual
            self.u = torch.minimum(torch.maximum(v, -edge), edge)
            self.z = v.sub_(self.u)
        primal = (x - self.z).norm(dim=1, keepdim=True)
        dual = self.rho * (self.z - old).norm(dim=1, keepdim=True)
        factor = torch.where(primal > 5 * dual, 2.5, torch.where(dual > 5 * primal, 0.4, 1.0)).to(self.rho.dtype)
        self.rho = self.rho * factor
        self.u = self.u / factor

    def select(self, rows: torch.Tensor) -> None:
        self.batch = self.batch.select(rows)
        self.rho, self.z, self.u = self.rho[rows], self.z[rows], self.u[rows]


def _polish(
    batch: ScaledProblems, x: torch.Tensor, best: torch.Tensor, residual_of: torch.Tensor, tol: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Active-set steps from the support of ``x``, whose gap and residual are given: the best point seen, its gap and
    its residual, for each problem.

    A coordinate joins where the optimality condition |2 slope| ≤ T fails, and leaves where its sign came out wrong.
    A problem stops when it is finished or when a step made its gap worse.
    """
    kept, gaps, residuals = x.clone(), best.clone(), residual_of.clone()
    rows = torch.arange(len(x), device=x.device)
    sign = x.sign()
    last = torch.full_like(best, torch.inf)
    for _ in range(_POLISH):
        part = batch.select(rows)
        trial = part.on_support(sign)
        gap, residual, slope = part.gap(trial)
        better = gap < gaps[rows]
        won = rows[better]
        kept[won], gaps[won], residuals[won] = trial[better], gap[better], residual[better]
        joins = (2 * slope.abs() > part.weight) & (trial == 0)
        # many newcomers mean that the signs are not known yet: that is ADMM's work, and large systems are dear
        few = joins.sum(1) <= 8 + (trial != 0).sum(1) // 4
        go = (gap > tol) & few & (gap < last[rows])
        if not bool(go.any()):
            break
        last[rows] = gap
        sign = torch.where(joins, slope.sign(), trial.sign())[go]
        rows = rows[go]
    return kept, gaps, residuals


def solve_lasso(
    form: Quadratic,
    cross: torch.Tensor,
    square: torch.Tensor,
    eta: torch.Tensor,
    exclude: torch.Tensor,
    *,
    start: torch.Tensor | None = None,
    tol: float = 1e-6,
    max_rounds: int = 60,
    max_steps: int = 1000,
) -> LassoSolution:
    """Solve B problems to a relative duality gap of ``tol``, or return the best point found with the gap it has.

    Parameters
    ----------
    form : Quadratic
        The Gram matrices of the explaining columns.
    cross : torch.Tensor
        mean z_j·target, float64 (B, c).
    square : torch.Tensor
        mean target², (B,), positive.
    eta : torch.Tensor
        η > 0, (B,), in the units of the squared logits.
    exclude : torch.Tensor
        The column each problem must not use, integer (B,).
    start : torch.Tensor, optional
        Coefficients (B, c) to begin at, such as the solution at a larger η.
    tol : float
        (primal − dual)/primal at which a problem is finished; default 1e-6.
    max_rounds : int
        Rounds of 20 ADMM iterations before the problems that are left are solved one by one; measured need: 1 to 8.
    max_steps : int
        Steps of ``active_set`` for each problem that is left, before giving up; 0 for none.

    Examples
    --------
    >>> from rankscope.deficit.operators import SharedGram
    >>> gram = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> solve_lasso(SharedGram(gram), gram, one, 0.2 * one, torch.arange(2)).coefficients
    tensor([[0.0000, 0.8000],
            [0.8000, 0.0000]], dtype=torch.float64)
    """
    unit = square.sqrt()[:, None]
    scale = form.scale.expand_as(cross)
    weight = (eta[:, None] / (scale * unit)).scatter(1, exclude[:, None], torch.inf)
    h = (cross / (scale * unit)).scatter(1, exclude[:, None], 0.0)
    batch = ScaledProblems(form, h, weight)
    x = torch.zeros_like(h) if start is None else (start * scale / unit).scatter(1, exclude[:, None], 0.0)
    gap, residual, slope = batch.gap(x)
    todo = (gap > tol).nonzero()[:, 0]
    if start is not None and len(todo):
        # from a larger η the support is nearly right: try the exact step before any ADMM
        part = batch.select(todo)
        sign = torch.where((2 * slope[todo].abs() > part.weight) & (x[todo] == 0), slope[todo].sign(), x[todo].sign())
        trial = part.on_support(sign)
        trial, found, left = _polish(part, trial, *part.gap(trial)[:2], tol)
        todo = _keep(x, gap, residual, todo, trial, found, left, tol)
    admm = _Admm(batch.select(todo), x[todo])
    for turn in range(max_rounds):
        if not len(todo):
            break
        admm.run(_ROUND)
        own, left, _ = admm.batch.gap(admm.z)
        ready = ((own < _READY) | (turn % 5 == 4)).nonzero()[:, 0]
        trial, found = admm.z.clone(), own.clone()
        if len(ready):
            part = admm.batch.select(ready)
            trial[ready], found[ready], left[ready] = _polish(part, admm.z[ready], own[ready], left[ready], tol)
        before = todo
        todo = _keep(x, gap, residual, todo, trial, found, left, tol)
        if len(todo) < len(before):
            admm.select(torch.isin(before, todo).nonzero()[:, 0])
    for b in todo.tolist() if max_steps else ():
        one = todo.new_tensor([b])
        x[one], gap[one], residual[one] = active_set(batch.select(one), x[one], tol=tol, max_steps=max_steps)
    return LassoSolution(x * unit / scale, gap, residual * square)


def _keep(
    x: torch.Tensor,
    gap: torch.Tensor,
    residual: torch.Tensor,
    todo: torch.Tensor,
    trial: torch.Tensor,
    found: torch.Tensor,
    left: torch.Tensor,
    tol: float,
) -> torch.Tensor:
    """Write improvements into ``x``, ``gap`` and ``residual``; return the problems that are not finished."""
    better = found < gap[todo]
    rows = todo[better]
    x[rows], gap[rows], residual[rows] = trial[better], found[better], left[better]
    return todo[gap[todo] > tol]
