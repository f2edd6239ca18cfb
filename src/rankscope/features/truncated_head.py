"""A classifier that needs k dimensions of the features and no more, ready to deploy."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["TruncatedHead"]


class TruncatedHead(nn.Module):
    """Two linear layers d → k → c in place of one d → c: the projection on k principal axes folded into the head.

    The centring is folded into the second bias, so both conventions have the same form. Parameters: k(d + c) + c.

    Examples
    --------
    >>> head = TruncatedHead(torch.eye(3)[:, :2], torch.ones(4, 2), torch.zeros(4))
    >>> head(torch.tensor([[1.0, 2.0, 9.0]]))
    tensor([[3., 3., 3., 3.]], grad_fn=<AddmmBackward0>)
    """

    def __init__(self, axes: torch.Tensor, folded: torch.Tensor, offset: torch.Tensor) -> None:
        super().__init__()
        width, k = axes.shape
        # float64 axes belong to features that float32 cannot carry
        self.project = nn.Linear(width, k, bias=False, dtype=axes.dtype)
        self.classify = nn.Linear(k, len(folded), dtype=axes.dtype)
        with torch.no_grad():
            self.project.weight.copy_(axes.T)
            self.classify.weight.copy_(folded)
            self.classify.bias.copy_(offset)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(…, d) features to (…, c) logits."""
        logits: torch.Tensor = self.classify(self.project(features.to(self.project.weight.dtype)))
        return logits
