"""Files that a name and a folder name together: a data set keeps both, and joins them when it reads a sample."""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["files_below"]

_FEW = 64
_ENDING = 24  # characters
_DEPTH = 4  # folder, split, class, file
_Names = dict[str, "_Names"]


def files_below(texts: Iterable[str]) -> list[str]:
    """Every file that one of the texts names below a folder that another names, or below one that two name together.

    A text that is an ending, as ``.png`` or ``_mask.png``, may follow a name, and one as ``/images/`` may follow a
    folder. A name may leave its folder first, as ``../images/0.png``. Each folder is listed at most once for each part
    of a name, so that the cost grows with the names or the files and not with the product of folders and names.
    """
    trees: dict[int, _Names] = {0: {}}  # names that start with so many ".."
    folders: set[str] = set()
    known = {text for text in texts if 0 < len(text) < 4096 and "\0" not in text}
    endings = tuple(sorted(filter(_is_ending, known)))
    for text in known:
        plain = os.path.normpath(text.replace("\\", "/"))
        whole = os.path.isabs(plain)
        parts = plain.strip(os.sep).split(os.sep)
        up = 0 if whole else next((i for i, part in enumerate(parts) if part != ".."), len(parts))
        parts = parts[up:]
        if parts and (not whole or (len(plain) > 1 and not os.path.exists(text))) and "." not in parts:
            below = trees.setdefault(up, {})
            for part in parts:
                below = below.setdefault(part, {})
            below[""] = {}  # a name ends here
        # names below the working folder are found as they are, and everything is below the root
        if plain != "." and os.path.dirname(plain) != plain and os.path.isdir(text):
            folders.add(plain)
    found: set[str] = set()
    seen: set[tuple[str, int]] = set()

    def all_from(folder: str, depth: int) -> list[tuple[str, _Names, int]]:
        return [(os.path.join(folder, *[os.pardir] * up), tree, depth) for up, tree in trees.items()]

    waiting = [each for folder in sorted(folders) for each in all_from(folder, 0)]
    while waiting:
        folder, level, depth = waiting.pop()
        # a way up and down again ends where it started
        here = os.path.realpath(folder) if os.pardir in folder.split(os.sep) else folder
        if (here, id(level)) in seen:
            continue
        seen.add((here, id(level)))
        for name, entry in _entries(folder, level, endings):
            path, below = os.path.join(folder, entry), level[name]
            if "" in below and os.path.isfile(path):
                found.add(path)
            elif name == entry and os.path.isdir(path):
                if len(below) > ("" in below):
                    waiting.append((path, below, depth))
                if "" in below and depth + 1 < _DEPTH:
                    waiting += all_from(path, depth + 1)
    return sorted(found)


def _is_ending(text: str) -> bool:
    """Not every sentence that starts with a full stop is one: each ending costs a look at every file of a folder."""
    plain = len(text) <= _ENDING and text[0] in "._-" and "/" not in text and not any(map(str.isspace, text))
    return plain and "." in text and bool(text.strip("."))


def _entries(folder: str, names: _Names, endings: tuple[str, ...]) -> list[tuple[str, str]]:
    """What a folder holds under one of the names, with an ending or without: the name and what is there."""
    if len(names) * (1 + len(endings)) <= _FEW:
        pairs = [(name, name + ending) for name in names if name for ending in ("", *endings)]
        return [(name, entry) for name, entry in pairs if os.path.lexists(os.path.join(folder, entry))]
    try:
        held = os.listdir(folder)
    except OSError:
        return []
    found = [(entry, entry) for entry in held if entry in names]
    for ending in endings:
        size = len(ending)
        found += [(entry[:-size], entry) for entry in held if entry.endswith(ending) and entry[:-size] in names]
    return [(name, entry) for name, entry in found if name]
