"""Means, Gram and cross-Gram matrices of logits in float64, a block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["BLOCK", "Moments", "moments", "permuted_cross"]

BLOCK = 8192  # rows converted to float64 at a time: 64 MiB at 1,000 classes


@dataclass(frozen=True)
class Moments:
    """``mean`` (c,), centred ``gram`` (c, c) divided by ``count``; float64."""

    mean: torch.Tensor
    gram: torch.Tensor
    count: int


def moments(logits: torch.Tensor, rows: torch.Tensor) -> Moments:
    """Mean and covariance (divided by the count) of ``logits[rows]``, the mean taken away before squaring.

    >>> moments(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1])).gram
    tensor([[1., 2.], [2., 4.]], dtype=torch.float64)
    """
    mean = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    for part in rows.split(BLOCK):
        mean += logits[part].to(torch.float64).sum(0)
    mean /= len(rows)
    gram = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=logits.device)
    for part in rows.split(BLOCK):
        z = logits[part].to(torch.float64) - mean
        gram.addmm_(z.T, z)
    return Moments(mean, gram / len(rows), len(rows))


def permuted_cross(
    logits: torch.Tensor, rows: torch.Tensor, order: torch.Tensor, mean: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """mean z_j(x)·z_i(πx), centred, with π given by ``order``: row ``rows[n]`` meets target row ``rows[order[n]]``.

    Returns (classes, c): what ``gram[classes]`` is without a permutation.
    """
    cross = torch.zeros(len(classes), len(mean), dtype=torch.float64, device=logits.device)
    for part, moved in zip(rows.split(BLOCK), rows[order].split(BLOCK), strict=True):
        target = logits[moved][:, classes].to(torch.float64) - mean[classes]
        cross.addmm_(target.T, logits[part].to(torch.float64) - mean)
    return cross / len(rows)
