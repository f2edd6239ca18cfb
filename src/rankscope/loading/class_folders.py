"""Class folders by name: in what order their labels run, and whether they are classes at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rankscope._base.facts import Fact, FactKind
from rankscope.loading._torchvision import ensure_torchvision
from rankscope.loading.images import is_left_behind

__all__ = ["ClassOrder", "class_folders", "class_order", "imagenet_classes", "split_folder"]

_SPLITS = ("val", "validation", "test")
_MOST_SPLITS = 4  # folders; a data set of more holds classes, one of which may be called test


class ClassOrder(NamedTuple):
    """Folders in the order of their labels, names to show, and facts; ``rule`` is imagenet, numbers or alphabet."""

    folders: tuple[str, ...]
    names: tuple[str, ...]
    rule: str
    facts: tuple[Fact, ...]


def class_folders(path: Path) -> list[str]:
    """The folders in ``path``, sorted, without those that tools leave behind (``.ipynb_checkpoints``, ``.git`` …)."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not is_left_behind(p.name))


def class_order(folders: Collection[str]) -> ClassOrder:
    """ImageNet's names (n01440764 …) in ImageNet's order, whole numbers in theirs, others in that of the alphabet.

    >>> class_order(["10", "9", "2"]).folders
    ('2', '9', '10')
    """
    synsets, described = imagenet_classes()
    given = set(folders)
    if given <= set(synsets):
        order = tuple(s for s in synsets if s in given)
        return ClassOrder(order, tuple(described[s] for s in order), "imagenet", ())
    if all(name.isdecimal() for name in folders):
        order = tuple(sorted(folders, key=lambda name: (int(name), name)))
        return ClassOrder(order, order, "numbers", (Fact(FactKind.FOLDER_ORDER, {"rule": "numbers"}),))
    order = tuple(sorted(folders))
    return ClassOrder(order, order, "alphabet", (Fact(FactKind.FOLDER_ORDER, {"rule": "alphabet"}),))


def split_folder(folders: Sequence[str]) -> str | None:
    """The folder to give instead, where these are the splits of a data set and not its classes.

    >>> split_folder(["train", "val"]), split_folder(["cat", "dog"])
    ('val', None)
    """
    return next((name for name in _SPLITS if name in folders and len(folders) <= _MOST_SPLITS), None)


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, ...], dict[str, str]]:
    """ImageNet's 1,000 folder names in the order of the logits, and a word for each."""
    ensure_torchvision()
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo("imagenet-1k")
    labels = tuple(str(s) for s in info.label_names())
    return labels, {s: str(info.index_to_description(i)).partition(",")[0] for i, s in enumerate(labels)}
