"""The order of classes that are named by folders: where their labels come from."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, NamedTuple

from rankscope._base.facts import Fact, FactKind
from rankscope.loading._torchvision import ensure_torchvision

__all__ = ["ClassOrder", "class_order", "imagenet_classes"]

_SYNSET = re.compile(r"n\d{8}")


class ClassOrder(NamedTuple):
    """Folders in the order of their labels, names to show, and facts; ``rule`` is imagenet, numbers or alphabet."""

    folders: tuple[str, ...]
    names: tuple[str, ...]
    rule: str
    facts: tuple[Fact, ...]


def class_order(folders: Collection[str]) -> ClassOrder:
    """ImageNet's names (n01440764 …) in ImageNet's order, whole numbers in theirs, others in that of the alphabet.

    >>> class_order(["10", "9", "2"]).folders
    ('2', '9', '10')
    """
    given = set(folders)
    synsets, described = imagenet_classes() if all(map(_SYNSET.fullmatch, given)) else ((), {})  # timm takes a second
    if given <= set(synsets):
        order = tuple(s for s in synsets if s in given)
        return ClassOrder(order, tuple(described[s] for s in order), "imagenet", ())
    if all(name.isdecimal() for name in folders):
        order = tuple(sorted(folders, key=lambda name: (int(name), name)))
        return ClassOrder(order, order, "numbers", (Fact(FactKind.FOLDER_ORDER, {"rule": "numbers"}),))
    order = tuple(sorted(folders))
    return ClassOrder(order, order, "alphabet", (Fact(FactKind.FOLDER_ORDER, {"rule": "alphabet"}),))


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, ...], dict[str, str]]:
    """ImageNet's 1,000 folder names in the order of the logits, and a word for each."""
    ensure_torchvision()
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo("imagenet-1k")
    labels = tuple(str(s) for s in info.label_names())
    return labels, {s: str(info.index_to_description(i)).partition(",")[0] for i, s in enumerate(labels)}
