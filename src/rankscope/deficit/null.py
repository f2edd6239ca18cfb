"""Permutations for the null: what R² is left when a class's logit is moved between samples.

``within_class`` (default) moves it among samples of the same label. Class means stay, everything beyond them goes. A
classifier's class means alone make logits predictable from one another (other logits tell the label, the label tells
the mean), so an R² that this null also reaches says nothing about a dependence between the logits themselves.
``free`` moves it among all samples: it removes class means too, and exposes only overfitting.

Permutations are uniform, samples that stay in place included: a derangement would make the permuted logit
anti-correlated with the true one, by −1/(n − 1) within a class of n samples.
"""

from __future__ import annotations

import math

import torch

__all__ = ["ENOUGH", "arrangements", "permutation"]

# A claim at four standard deviations is one of 1 in 31,574 (Gaussian, one side): fewer arrangements cannot support it
ENOUGH = math.log(31_574)


def arrangements(target: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log Π n_k! for every column of ``target`` (N, B), over the labels within which it varies; (B,) float64, CPU.

    One sample per class, or logits that are the same throughout each class, leave one arrangement: the null is then the
    data themselves and cannot reject anything.

    >>> arrangements(torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([0, 0, 1])).exp().round()
    tensor([2.], dtype=torch.float64)
    """
    count = int(labels.max()) + 1
    sizes = torch.bincount(labels, minlength=count).to(torch.float64).cpu()
    total = []
    for part in target.split(64, dim=1):
        index = labels[:, None].expand(-1, part.shape[1])
        least = part.new_full((count, part.shape[1]), torch.inf).scatter_reduce(0, index, part, "amin")
        most = part.new_full((count, part.shape[1]), -torch.inf).scatter_reduce(0, index, part, "amax")
        total.append(((most > least).cpu() * torch.lgamma(sizes + 1)[:, None]).sum(0))
    return torch.cat(total)


def permutation(labels: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """A uniform permutation of the samples, within labels or free; ``generator`` lives on the CPU.

    >>> order = permutation(torch.tensor([0, 1, 0, 1]), "within_class", torch.Generator().manual_seed(0))
    >>> (torch.tensor([0, 1, 0, 1])[order]).tolist()
    [0, 1, 0, 1]
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    if kind == "free":
        return shuffled.to(labels.device)
    y = labels.cpu()
    order = torch.empty_like(shuffled)
    order[torch.argsort(y, stable=True)] = shuffled[torch.argsort(y[shuffled], stable=True)]
    return order.to(labels.device)
