"""What always giving one answer is worth."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from rankscope._base.facts import Fact, FactKind

__all__ = ["ACCURACIES", "Accuracy", "against_one_answer", "majority"]

Accuracy: TypeAlias = Literal["overall", "balanced"]
ACCURACIES = ("overall", "balanced")

_ROUNDING = 1e-12  # of accuracies that are sums of up to 10⁶ weights


def majority(labels: torch.Tensor, accuracy: str) -> tuple[float, int]:
    """Accuracy of always answering the most frequent class, and that class.

    ``accuracy`` is ``overall``, or ``balanced``: every class that occurs counts alike.

    >>> majority(torch.tensor([0, 1, 1, 1]), "overall"), majority(torch.tensor([0, 1, 1, 1]), "balanced")
    ((0.75, 1), (0.5, 1))
    """
    seen = torch.bincount(labels)
    most = int(seen.argmax())
    return (float(seen[most]) / len(labels) if accuracy == "overall" else 1 / int((seen > 0).sum())), most


def against_one_answer(
    labels: torch.Tensor, full: float, keep: float | None, measure: str, *, of: str
) -> tuple[Fact, ...]:
    """Whether always giving one answer is as good as the full accuracy, or as the share of it that is to be kept.

    ``of`` is what the accuracy is of: ``head`` or ``logits``. ``keep`` None: nothing is to be kept.

    >>> against_one_answer(torch.tensor([0, 1, 1, 1]), 0.75, None, "overall", of="head")[0].kind.name
    'AT_CHANCE'
    """
    share, answer = majority(labels, measure)
    about = {"share": share, "answer": answer, "measure": measure}
    if full <= share + _ROUNDING:
        return (Fact(FactKind.AT_CHANCE, {"accuracy": full, "of": of, **about}, caution=True),)
    if keep is not None and keep * full <= share + _ROUNDING:
        return (Fact(FactKind.KEPT_BY_CHANCE, {"kept": keep * full, **about}, caution=True),)
    return ()
