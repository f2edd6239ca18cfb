"""What always giving one answer is worth."""

from __future__ import annotations

import torch

__all__ = ["majority"]


def majority(labels: torch.Tensor, accuracy: str) -> tuple[float, int]:
    """Accuracy of always answering the most frequent class, and that class.

    ``accuracy`` is ``overall``, or ``balanced``: every class that occurs counts alike.

    >>> majority(torch.tensor([0, 1, 1, 1]), "overall"), majority(torch.tensor([0, 1, 1, 1]), "balanced")
    ((0.75, 1), (0.5, 1))
    """
    seen = torch.bincount(labels)
    most = int(seen.argmax())
    return (float(seen[most]) / len(labels) if accuracy == "overall" else 1 / int((seen > 0).sum())), most
