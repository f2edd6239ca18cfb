"""The quadratic form of many Lasso problems at once, from one shared Gram matrix or from one small factor per problem.

Problem b is min 1 − 2 h_b·l + lᵀC_b l + Σ_j T_bj |l_j| in scaled units: columns and targets divided by their root mean
square, so that every C_b has a unit diagonal. Leaving a class out of its own regression is T_bb = ∞, which is the
leave-one-out row and column of the Gram matrix without copying it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["FactorGram", "Quadratic", "SharedGram", "column_scale"]

# A column whose spread is below this share of its own mean is constant up to rounding: dividing by it would blow noise
# up. How large other columns are says nothing of it.
_ZERO = 1e-13


def column_scale(squares: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
    """√ of the mean squares of columns (…, c); 1 where a column is zero, so that it can be divided by.

    ``mean`` (c,) is what was taken off the columns.

    >>> column_scale(torch.tensor([4.0, 0.0]))
    tensor([2., 1.])
    """
    root = squares.clamp_min(0).sqrt()
    least = torch.zeros_like(root) if mean is None else _ZERO * mean.abs()
    return torch.where(root > least, root, torch.ones_like(root))


class Quadratic(Protocol):
    """What the solver needs of the matrices C_b; every argument and result has one row a problem, float64."""

    @property
    def scale(self) -> torch.Tensor:
        """What the columns were divided by, (c,) or (B, c)."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """C_b x_b; (B, c) to (B, c)."""

    def ridge_solve(self, x: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        """(2 C_b + ρ_b I)⁻¹ x_b; ``rho`` is (B, 1)."""

    def block(self, index: torch.Tensor) -> torch.Tensor:
        """C_b restricted to the columns ``index`` (B, s): (B, s, s)."""

    def select(self, rows: torch.Tensor) -> Quadratic:
        """The same for the problems ``rows`` alone."""


class SharedGram:
    """One Gram matrix for all problems: products are matrix–matrix, and one eigendecomposition serves every ρ."""

    def __init__(self, gram: torch.Tensor, mean: torch.Tensor | None = None) -> None:
        self._scale = column_scale(gram.diagonal(), mean)
        self.matrix = gram / self._scale / self._scale[:, None]
        self.eigenvalues, self.basis = torch.linalg.eigh(self.matrix)
        self.eigenvalues = self.eigenvalues.clamp_min(0)

    @property
    def scale(self) -> torch.Tensor:
        return self._scale

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix

    def ridge_solve(self, x: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        return (x @ self.basis).div_(2 * self.eigenvalues + rho) @ self.basis.T

    def block(self, index: torch.Tensor) -> torch.Tensor:
        columns = self.matrix.shape[0]
        return self.matrix.view(-1)[index[:, :, None] * columns + index[:, None, :]]

    def select(self, rows: torch.Tensor) -> SharedGram:
        return self


@dataclass(frozen=True)
class FactorGram:
    """Its own Gram matrix C_b = X_bᵀX_b for each problem, kept as the factor X (B, n, c) with n ≤ c.

    ``reference`` fits each class on its own few positive samples; a c × c matrix per class would not fit in memory.
    """

    factor: torch.Tensor  # (B, n, c), columns scaled
    scale: torch.Tensor  # (B, c)
    eigenvalues: torch.Tensor  # (B, n) of X Xᵀ
    basis: torch.Tensor  # (B, n, n)

    @classmethod
    def of(cls, samples: torch.Tensor, counts: torch.Tensor) -> FactorGram:
        """From samples (B, n, c), rows beyond ``counts`` (B,) zero; the Gram matrix is XᵀX/count."""
        x = samples / counts.to(samples.dtype).sqrt()[:, None, None]
        if x.shape[1] > x.shape[2]:
            x = torch.linalg.qr(x, mode="r").R
        scale = column_scale(x.square().sum(1))
        x = x / scale[:, None, :]
        eigenvalues, basis = torch.linalg.eigh(x @ x.mT)
        return cls(x, scale, eigenvalues.clamp_min(0), basis)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return ((x[:, None, :] @ self.factor.mT) @ self.factor)[:, 0]

    def ridge_solve(self, x: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        # Woodbury: (2XᵀX + ρ)⁻¹ = (I − Xᵀ V diag(2/(2k + ρ)) Vᵀ X)/ρ with X Xᵀ = V diag(k) Vᵀ
        inner = (x[:, None, :] @ self.factor.mT) @ self.basis
        inner = inner * (2 / (2 * self.eigenvalues + rho))[:, None, :]
        return (x - ((inner @ self.basis.mT) @ self.factor)[:, 0]) / rho

    def block(self, index: torch.Tensor) -> torch.Tensor:
        columns = self.factor.gather(2, index[:, None, :].expand(-1, self.factor.shape[1], -1))
        return columns.mT @ columns

    def select(self, rows: torch.Tensor) -> FactorGram:
        return FactorGram(self.factor[rows], self.scale[rows], self.eigenvalues[rows], self.basis[rows])
