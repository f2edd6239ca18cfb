"""Whether the classes of the data are those of the model: said before any number that rests on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from rankscope._base.chance import against_one_answer
from rankscope._base.facts import Fact, FactKind

__all__ = ["class_cautions", "places_by_name"]


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
        known = {_plain(name) for name in model}
        unknown = tuple(name for name in data if _plain(name) not in known)
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


def places_by_name(names: Sequence[str], model: Sequence[str]) -> dict[str, int]:
    """The place in the model's classes of each name that stands for exactly one of them, as written or plainly.

    A name that the model has twice (ImageNet has two cranes), or that two of the names could be, has no place.

    >>> places_by_name(["Dog", "crane", "great_white_shark"], ["crane", "dog", "crane", "great white shark, man-eater"])
    {'Dog': 1, 'great_white_shark': 3}
    """
    written, plain = Counter(model), Counter(map(_plain, model))
    given = Counter(map(_plain, names))
    at = {name: k for k, name in enumerate(model)}
    plainly = {_plain(name): k for k, name in enumerate(model)}
    places = {}
    for name in names:
        if written[name]:
            if written[name] == 1:
                places[name] = at[name]
        elif plain[_plain(name)] == given[_plain(name)] == 1:
            places[name] = plainly[_plain(name)]
    return places


def _plain(name: str) -> str:
    """ImageNet's classes have several names with commas between."""
    return name.partition(",")[0].strip().casefold().replace("_", " ")
