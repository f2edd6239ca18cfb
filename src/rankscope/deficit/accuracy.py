"""Accuracy when the logit of one class is replaced by its prediction from the other classes (paper, Eq. 12)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankscope.deficit.moments import BLOCK

__all__ = ["Accuracies", "Rivals", "rivals"]


@dataclass(frozen=True)
class Accuracies:
    """Top-1 accuracies, one entry per class: over ``all`` samples and over the ``positive`` ones (label = class)."""

    all: torch.Tensor
    positive: torch.Tensor


@dataclass(frozen=True)
class Rivals:
    """The best and second-best logit of every sample: enough to know who wins when one class's logit changes."""

    logits: torch.Tensor
    labels: torch.Tensor
    values: torch.Tensor  # (N, 2) float64
    index: torch.Tensor  # (N, 2)
    weights: torch.Tensor  # (N,) float64, 1 in the mean: what each sample counts in the accuracy over all

    def original(self, classes: torch.Tensor) -> Accuracies:
        """Accuracies with the true logits."""
        right = self.index[:, 0] == self.labels
        counts = torch.bincount(self.labels, minlength=self.logits.shape[1])
        hits = torch.bincount(self.labels[right], minlength=self.logits.shape[1])
        overall = (right * self.weights).mean()
        return Accuracies(overall.expand(len(classes)).clone(), (hits / counts.to(torch.float64))[classes])

    def replaced(self, classes: torch.Tensor, coefficients: torch.Tensor, intercept: torch.Tensor) -> Accuracies:
        """Accuracies with the logit of class b replaced by coefficients[b]·z + intercept[b], for each b in turn.

        ``coefficients`` is (B, c), ``intercept`` (B,), both float64. Only one logit changes at a time.
        """
        right = torch.zeros(len(classes), dtype=torch.float64, device=self.logits.device)
        hits, counts = torch.zeros_like(right), torch.zeros_like(right)
        for start in range(0, len(self.labels), BLOCK):
            rows = slice(start, start + BLOCK)
            label = self.labels[rows, None]
            guess = torch.addmm(intercept, self.logits[rows].to(torch.float64), coefficients.T)
            own_first = self.index[rows, :1] == classes
            rival = torch.where(own_first, self.index[rows, 1:], self.index[rows, :1])
            bar = torch.where(own_first, self.values[rows, 1:], self.values[rows, :1])
            # the class with the lower index wins a tie, as in argmax
            wins = (guess > bar) | ((guess == bar) & (classes < rival))
            positive = label == classes
            right += (torch.where(positive, wins, ~wins & (rival == label)) * self.weights[rows, None]).sum(0)
            hits += (wins & positive).sum(0)
            counts += positive.sum(0)
        return Accuracies(right / len(self.labels), hits / counts)


def rivals(logits: torch.Tensor, labels: torch.Tensor, accuracy: str = "overall") -> Rivals:
    """The two best logits of every sample, the lower index first in a tie.

    ``balanced`` weighs samples so that every class that occurs counts alike in the accuracy over all.

    >>> rivals(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1])).index
    tensor([[1, 2]])
    """
    values, index = [], []
    for part in logits.split(BLOCK):
        first = part.argmax(1, keepdim=True)
        rest = part.scatter(1, first, -torch.inf)
        second = rest.argmax(1, keepdim=True)
        index.append(torch.cat([first, second], 1))
        values.append(part.gather(1, index[-1]).to(torch.float64))
    weights = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
    if accuracy == "balanced":
        seen = torch.bincount(labels).to(torch.float64)
        weights = len(labels) / (seen[labels] * int((seen > 0).sum()))
    return Rivals(logits, labels, torch.cat(values), torch.cat(index), weights)
