"""One Lasso problem at a time by descent over supports: slow, and sure to end where columns depend on each other.

With the signs held, the objective is a quadratic on an orthant. Each step goes towards its minimiser and stops at the
first coordinate to reach zero, which leaves the support (Osborne, Presnell & Turlach, 2000, "On the LASSO and its
dual"). Where the support's Gram matrix is singular, the quadratic may have no minimiser: then it falls linearly along
a null vector, and the step follows that until a coordinate reaches zero. A minimiser reached, the coordinate that
breaks its optimality condition most joins. Every step lowers the objective, so no support returns, and there are
finitely many.
"""

from __future__ import annotations

import torch

from rankscope.deficit.scaled import ScaledProblems

__all__ = ["active_set"]

_EPS = torch.finfo(torch.float64).eps
_STALLED = 5  # minimisers in a row that did not lower the gap: what is left of it is rounding


def active_set(
    problem: ScaledProblems, x: torch.Tensor, *, tol: float, max_steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best point found from ``x`` (1, c) on, its relative gap and its residual mean square, each with one row."""
    columns = torch.isfinite(problem.weight[0]).nonzero()[:, 0]
    matrix = problem.form.block(columns[None])[0].cpu()
    h, half = problem.h[0, columns].cpu(), 0.5 * problem.weight[0, columns].cpu()
    now = x[0, columns].cpu()
    gap, residual, _ = problem.gap(x)
    kept, stalled = x, 0
    sign = now.sign()
    for _ in range(max_steps):
        now, sign, arrived = _step(matrix, h, half, now, sign)
        if not arrived:
            continue
        trial = torch.zeros_like(x)
        trial[0, columns] = now.to(x.device)
        found, left, _ = problem.gap(trial)
        stalled += 1
        if bool(found < gap):
            kept, gap, residual, stalled = trial, found, left, 0
        if bool(gap <= tol) or stalled == _STALLED:
            break
        slope = h - matrix @ now
        excess = torch.where(sign == 0, slope.abs() - half, 0.0) / half
        joins = int(excess.argmax())
        if excess[joins] > 0:
            sign[joins] = slope[joins].sign()
    return kept, gap, residual


def _step(
    matrix: torch.Tensor, h: torch.Tensor, half: torch.Tensor, x: torch.Tensor, sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """One step on the support ``sign``; the new point, its signs, and whether it is the minimiser for them."""
    used = sign.nonzero()[:, 0]
    if not len(used):
        return x, sign, True
    at, signs = x[used], sign[used]
    down = (h - matrix @ x)[used] - half[used] * signs
    values, vectors = torch.linalg.eigh(matrix[used[:, None], used])
    along = vectors.T @ down
    flat = values <= 8 * len(used) * _EPS * values[-1]
    # the descent direction is a difference of sums of this size
    rounding = 8 * len(used) ** 0.5 * _EPS * (1 + float(x.abs().sum()))
    linear = flat & (along.abs() > rounding)
    curved = vectors[:, ~flat] @ (along[~flat] / values[~flat])
    for direction, limit in ((vectors[:, linear] @ along[linear], torch.inf), (curved, 1.0)):
        if not bool((direction != 0).any()):
            continue
        crossing = torch.where(direction * signs < 0, -at / direction, torch.inf)
        first = crossing.min()
        if bool(first < limit):
            at = at + first * direction
            at[(crossing == first) | (at * signs < 0)] = 0.0
            out, kept = x.clone(), sign.clone()
            out[used] = at
            kept[used[crossing == first]] = 0.0
            kept[used[(at == 0) & (x[used] != 0)]] = 0.0
            return out, kept, False
        if limit == 1.0:
            at = at + direction
    out = x.clone()
    out[used] = at
    return out, sign, True
