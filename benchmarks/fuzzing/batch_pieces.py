"""Functions in which the samples of one batch change each other, in their values or in their derivatives alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fuzzing.choices import Choices, Shape, piece
from fuzzing.plain_pieces import Do


def clip(h: Tensor) -> Tensor:
    return h * torch.clamp(1.0 / h.norm(), max=1)


def batch_mean(h: Tensor) -> Tensor:
    return h - 0.5 * h.mean(0, keepdim=True)


def detached_mean(h: Tensor) -> Tensor:
    return torch.tanh(h - 0.5 * h.mean(0, keepdim=True).detach())


def largest(h: Tensor) -> Tensor:
    return h / (1 + h.abs().max())


def attend(h: Tensor) -> Tensor:
    weights = torch.softmax(h.flatten(1).sum(1), 0).view(-1, *[1] * (h.ndim - 1))
    return h * weights + h


def neighbour(h: Tensor) -> Tensor:
    return h + 1e-5 * h.roll(1, 0)


def first(h: Tensor) -> Tensor:
    return torch.tanh(h - 0.3 * h[:1])


def ranked(h: Tensor) -> Tensor:
    """Coupled through the order alone: the largest of a batch is treated in another way."""
    order = h.flatten(1).norm(dim=1).argsort(descending=True).argsort()
    return torch.where((order == 0).view(-1, *[1] * (h.ndim - 1)), torch.tanh(h), 0.5 * h)


def by_size(h: Tensor) -> Tensor:
    """Another function for another number of samples."""
    return torch.tanh(h) / h.shape[0] if h.shape[0] > 1 else torch.tanh(h)


def threshold(h: Tensor) -> Tensor:
    """A mask from the batch: coupled in values only where the batch's mean moves a unit across."""
    return h * (h > 0.2 * h.mean())


COUPLINGS = (clip, batch_mean, detached_mean, largest, attend, neighbour, first, ranked, by_size, threshold)


@piece("samples coupled", 1, 2, 3, couples=True, weight=1.5)
def coupled(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    function = c.one(COUPLINGS)
    c.use(f"samples coupled: {function.__name__}")
    return Do(function), shape
