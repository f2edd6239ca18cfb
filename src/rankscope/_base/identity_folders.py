"""Files that a name and a folder name together: a data set keeps both, and joins them when it reads a sample."""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["files_below"]

_FEW = 64
_DEPTH = 4  # folder, split, class, file
_Names = dict[str, "_Names"]


def files_below(texts: Iterable[str]) -> list[str]:
    """Every file that one of the texts names below a folder that another names, or below one that two name together.

    A text that is an ending, as ``.png``, may follow a name, and one as ``/images/`` may follow a folder. Each folder
    is listed at most once for each part of a name, so that the cost grows with the names or the files and not with
    the product of folders and names.
    """
    names: _Names = {}
    folders: set[str] = set()
    known = {text for text in texts if 0 < len(text) < 4096 and "\0" not in text}
    endings = tuple(sorted(text for text in known if text.startswith(".") and text.strip(".") and "/" not in text))
    for text in known:
        plain = os.path.normpath(text.replace("\\", "/"))
        whole = os.path.isabs(plain)
        parts = plain.strip(os.sep).split(os.sep)
        if (not whole or (len(plain) > 1 and not os.path.exists(text))) and not {"..", "."} & set(parts):
            below = names
            for part in parts:
                below = below.setdefault(part, {})
            below[""] = {}  # a name ends here
        # names below the working folder are found as they are, and everything is below the root
        if plain != "." and os.path.dirname(plain) != plain and os.path.isdir(text):
            folders.add(plain)
    found: set[str] = set()
    seen: set[tuple[str, int]] = set()
    waiting = [(folder, names, 0) for folder in sorted(folders)]
    while waiting:
        folder, level, depth = waiting.pop()
        if (folder, id(level)) in seen:
            continue
        seen.add((folder, id(level)))
        for name, entry in _entries(folder, level, endings):
            path, below = os.path.join(folder, entry), level[name]
            if "" in below and os.path.isfile(path):
                found.add(path)
            elif name == entry and os.path.isdir(path):
                if len(below) > ("" in below):
                    waiting.append((path, below, depth))
                if "" in below and depth + 1 < _DEPTH:
                    waiting.append((path, names, depth + 1))
    return sorted(found)


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
