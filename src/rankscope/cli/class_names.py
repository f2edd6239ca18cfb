"""Whether the classes of the data are those of the model: said before any number that rests on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankscope._base.chance import against_one_answer
from rankscope._base.facts import Fact, FactKind

__all__ = ["class_cautions"]


def class_cautions(
    labels: torch.Tensor, logits: torch.Tensor, data: Sequence[str] | None, model: Sequence[str] | None
) -> tuple[Fact, ...]:
    """Names of the data of which the model has none, and an accuracy that always giving one answer reaches.

    Parameters
    ----------
    labels, logits : torch.Tensor
        (N,) integers and (N, c).
    data, model : sequence of str or None
        Class names in the order of the labels, and in that of the logits.
    """
    found = []
    if data and model and not {_plain(name) for name in data} & {_plain(name) for name in model}:
        found.append(Fact(FactKind.OTHER_CLASS_NAMES, {"data": tuple(data), "model": tuple(model)}, caution=True))
    full = float((logits.argmax(1) == labels).double().mean())
    return (*found, *against_one_answer(labels, full, None, "overall", of="head"))


def _plain(name: str) -> str:
    """ImageNet's classes have several names with commas between."""
    return name.partition(",")[0].strip().casefold().replace("_", " ")
