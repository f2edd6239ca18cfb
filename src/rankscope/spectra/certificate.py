"""A bound on the spectral norm of an error matrix that is known only through products with Gaussian vectors."""

from __future__ import annotations

import math

import torch

from rankscope._base.errors import UsageError
from rankscope.spectra.scale import scaled_norm

__all__ = ["norm_bound", "norm_bound_of_lengths"]


def norm_bound(products: torch.Tensor, *, dim: int = -1) -> float:
    """Upper bound on ‖E‖₂ from the columns E·g_1 … E·g_q with independent standard Gaussian g_i.

    ‖E‖₂ ≤ 10·√(2/π)·max_i ‖E g_i‖₂ except with probability 10^−q (Halko, Martinsson and Tropp, SIAM Review 2011,
    Lemma 4.1). Give the products as a matrix, probes along ``dim``.

    >>> round(norm_bound(torch.tensor([[3.0, 0.0], [4.0, 0.0]])), 2)
    39.89
    """
    if products.ndim != 2:
        raise UsageError(f"products must be a matrix; this has shape {tuple(products.shape)}")
    if products.shape[dim] == 0:
        return math.nan
    return norm_bound_of_lengths(scaled_norm(products, dim=0 if dim in (-1, 1) else 1))


def norm_bound_of_lengths(lengths: torch.Tensor) -> float:
    """The same bound from the lengths ‖E·g_i‖₂ alone."""
    return 10.0 * math.sqrt(2.0 / math.pi) * float(lengths.max())
