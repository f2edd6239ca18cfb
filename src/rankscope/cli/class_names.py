"""Whether the classes of the data are those of the model: said before any number that rests on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankscope._base.chance import against_one_answer
from rankscope._base.facts import Fact, FactKind
from rankscope.loading.class_places import places_by_name, plain_name

__all__ = ["class_cautions"]


def class_cautions(
    labels: torch.Tensor, logits: torch.Tensor, data: Sequence[str] | None, model: Sequence[str] | None
) -> tuple[Fact, ...]:
    """Names that the model has not or has at another place, and an accuracy that always giving one answer reaches.

    Parameters
    ----------
    labels, logits : torch.Tensor
        (N,) integers and (N, c).
    data, model : sequence of str or None
        Class names in the order of the labels, and in that of the logits.
    """
    found = []
    if data and model:
        known = {plain_name(name) for name in model}
        unknown = tuple(name for name in data if plain_name(name) not in known)
        places = places_by_name(data, model)
        moved = [name for k, name in enumerate(data) if places.get(name, k) != k]
        if moved:
            name = moved[0]
            about = {"count": len(moved), "name": name, "label": tuple(data).index(name), "place": places[name]}
            found.append(Fact(FactKind.OTHER_CLASS_ORDER, about, caution=True))
        if unknown:
            about = {"data": tuple(data), "model": tuple(model)}
            if len(unknown) < len(data):
                about["unknown"] = unknown
            found.append(Fact(FactKind.OTHER_CLASS_NAMES, about, caution=True))
    full = float((logits.argmax(1) == labels).double().mean())
    return (*found, *against_one_answer(labels, full, None, "overall", of="head"))
