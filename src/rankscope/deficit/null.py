"""Permutations for the null: what R² is left when a class's logit is moved between samples.

``within_class`` (default) moves it among samples of the same label. Class means stay, everything beyond them goes. A
classifier's class means alone make logits predictable from one another (other logits tell the label, the label tells
the mean), so an R² that this null also reaches says nothing about a dependence between the logits themselves.
``free`` moves it among all samples: it removes class means too, and exposes only overfitting.

Permutations are uniform, samples that stay in place included: a derangement would make the permuted logit
anti-correlated with the true one, by −1/(n − 1) within a class of n samples.
"""

from __future__ import annotations

import torch

__all__ = ["permutation"]


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
