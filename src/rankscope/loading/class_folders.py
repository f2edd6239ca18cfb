"""Class folders by name: which of a folder are classes, and whether they are classes at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankscope.loading.images import is_left_behind

__all__ = ["class_folders", "split_folder"]

_SPLITS = ("val", "validation", "test")
_MOST_SPLITS = 4  # folders; a data set of more holds classes, one of which may be called test


def class_folders(path: Path) -> list[str]:
    """The folders in ``path``, sorted, without those that tools leave behind (``.ipynb_checkpoints``, ``.git`` …)."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not is_left_behind(p.name))


def split_folder(folders: Sequence[str]) -> str | None:
    """The folder to give instead, where these are the splits of a data set and not its classes.

    >>> split_folder(["train", "val"]), split_folder(["cat", "dog"])
    ('val', None)
    """
    return next((name for name in _SPLITS if name in folders and len(folders) <= _MOST_SPLITS), None)
