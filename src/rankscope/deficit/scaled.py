"""Lasso problems in scaled units: their duality gap, and their exact solution where the signs are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankscope.deficit._parallel import map_batches
from rankscope.deficit.operators import Quadratic

__all__ = ["ScaledProblems"]

_ELEMENTS = 2**22  # entries of one batch of support matrices: 32 MiB in float64
_JITTER = 1e-13  # added to a unit diagonal, so that duplicated logits do not stop the factorisation


@dataclass
class ScaledProblems:
    """Problems in scaled units: ``h`` = C-side of the target (B, c), ``weight`` T (B, c), ∞ on the excluded column."""

    form: Quadratic
    h: torch.Tensor
    weight: torch.Tensor

    def select(self, rows: torch.Tensor) -> ScaledProblems:
        return ScaledProblems(self.form.select(rows), self.h[rows], self.weight[rows])

    def gap(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Relative duality gap, residual mean square and half the negative gradient of the smooth part.

        With r the residual, θ = s·r is dual feasible when |2 s X_jᵀr| ≤ T_j for all j, and the dual value is
        2 s y·r − s²‖r‖²; s is the best feasible one. All of it are products with the Gram matrix.

        Rounding limits what can be told: a slope is a sum of size 1 + ‖x‖₁ and wrong by ε(1 + ‖x‖₁), which next to
        its limit T_j/2 moves s, and with it the gap, by up to 2ε(1 + ‖x‖₁)/min T_j.
        """
        cx = self.form.apply(x)
        slope = self.h - cx
        on_target = 1 - (self.h * x).sum(1)
        residual = (on_target - (slope * x).sum(1)).clamp_min(0)
        # the excluded column carries x = 0 under an infinite weight; ∞·0 must count as nothing
        primal = residual + (self.weight * x.abs()).nan_to_num(nan=0.0).sum(1)
        limit = 1 / (2 * slope.abs() / self.weight).amax(1)
        free = on_target / residual
        s = torch.where(residual > 0, free, torch.sign(on_target) * torch.inf).clamp(-limit, limit).nan_to_num(nan=0.0)
        dual = torch.where(s == 0, 0.0, 2 * s * on_target - s * s * residual)
        return ((primal - dual) / primal).clamp_min(0), residual, slope

    def on_support(self, sign: torch.Tensor) -> torch.Tensor:
        """Minimiser over the coordinates with a sign, the signs held; coordinates that come out wrong are zero."""
        out = torch.zeros_like(sign)
        sizes = (sign != 0).sum(1)
        order = sizes.argsort()
        ordered = sizes[order].tolist()
        parts: list[tuple[torch.Tensor, int]] = []
        start = sum(size == 0 for size in ordered)
        while start < len(ordered):
            stop = start + 1
            while stop < len(ordered) and (stop + 1 - start) * ordered[stop] ** 2 <= _ELEMENTS:
                stop += 1
            parts.append((order[start:stop], ordered[stop - 1]))
            start = stop
        for (rows, _), found in zip(
            parts, map_batches(lambda part: self._solve(sign, *part), parts, sign), strict=True
        ):
            out[rows] = found
        return out

    def _solve(self, sign: torch.Tensor, rows: torch.Tensor, width: int) -> torch.Tensor:
        signs, index = _leading(sign[rows], width)
        used = signs != 0
        matrix = self.form.select(rows).block(index)
        matrix *= used[:, :, None]
        matrix *= used[:, None, :]
        matrix.diagonal(dim1=1, dim2=2).add_(torch.where(used, _JITTER, 1.0))
        right = (self.h[rows].gather(1, index) - 0.5 * self.weight[rows].gather(1, index) * signs) * used
        root, failed = torch.linalg.cholesky_ex(matrix)
        found = torch.cholesky_solve(right[:, :, None], root)[:, :, 0]
        found = torch.where(used & (found * signs > 0) & (failed[:, None] == 0), found, 0.0)
        return torch.zeros_like(sign[rows]).scatter_(1, index, found)


def _leading(sign: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The signs and columns of the ``width`` first used coordinates of each row, padded with unused ones."""
    index = torch.argsort((sign == 0).to(torch.uint8), dim=1, stable=True)[:, :width]
    return sign.gather(1, index), index
