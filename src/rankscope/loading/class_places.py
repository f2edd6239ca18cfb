"""Which of a model's classes a name stands for, as written or plainly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["misplaced", "places_by_name", "plain_name"]


def places_by_name(names: Sequence[str], model: Sequence[str]) -> dict[str, int]:
    """The place in the model's classes of each name that stands for exactly one of them, as written or plainly.

    A name that the model has twice (ImageNet has two cranes), or that two of the names could be, has no place.

    >>> places_by_name(["Dog", "crane", "great_white_shark"], ["crane", "dog", "crane", "great white shark, man-eater"])
    {'Dog': 1, 'great_white_shark': 3}
    """
    written, plain = Counter(model), Counter(map(plain_name, model))
    given = Counter(map(plain_name, names))
    at = {name: k for k, name in enumerate(model)}
    plainly = {plain_name(name): k for k, name in enumerate(model)}
    places = {}
    for name in names:
        if written[name]:
            if written[name] == 1:
                places[name] = at[name]
        elif plain[plain_name(name)] == given[plain_name(name)] == 1:
            places[name] = plainly[plain_name(name)]
    return places


def misplaced(labels: Mapping[str, int], places: Mapping[str, int]) -> str | None:
    """The first name whose label is that of another class than its name says.

    >>> misplaced({"cat": 0, "dog": 1}, {"dog": 5})
    'dog'
    """
    return next((name for name, label in labels.items() if places.get(name, label) != label), None)


def plain_name(name: str) -> str:
    """ImageNet's classes have several names with commas between."""
    return name.partition(",")[0].strip().casefold().replace("_", " ")
