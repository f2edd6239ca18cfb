"""Images of another mode than the network takes: converted all the same, and counted by mode."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["converted_images", "converted_note"]

_LOST = {
    "RGBA": "transparency dropped",
    "LA": "transparency dropped",
    "PA": "transparency dropped",
    "I;16": "16 bits scaled to 8",
    "I;16B": "16 bits scaled to 8",
}


def converted_images(root: Path, files: Iterable[str], channels: int) -> list[list[Any]]:
    """Mode, number and first file of all that are not RGB (of 3 channels) or L (of 1), by the files' headers alone.

    Files whose header cannot be read are left out: they are skipped, and told of as such.
    """
    import PIL.Image

    own = "L" if channels == 1 else "RGB"
    found: dict[str, list[Any]] = {}
    for file in files:
        try:
            with PIL.Image.open(file) as image:
                mode = image.mode
        except (
            OSError,
            ValueError,
            EOFError,
            PIL.Image.DecompressionBombError,
        ):  # what opening raises; told by reading
            continue
        if mode != own:
            found.setdefault(mode, [mode, 0, os.path.relpath(file, root)])[1] += 1
    return list(found.values())


def converted_note(converted: Iterable[Iterable[Any]], channels: int) -> list[str]:
    """One note that counts the modes and names the first file of each.

    >>> converted_note([["L", 2, "cat/1.png"], ["RGBA", 1, "dog/7.png"]], 3)
    ['3 images were converted to RGB: 2 of mode L (first: cat/1.png), 1 of mode RGBA, transparency dropped (dog/7.png)']
    """
    rows = [tuple(row) for row in converted]
    if not rows:
        return []
    total = sum(count for _, count, _ in rows)
    parts = [
        f"{count:,} of mode {mode}{f', {_LOST[mode]}' if mode in _LOST else ''} ({'first: ' * (count > 1)}{first})"
        for mode, count, first in rows
    ]
    images = "1 image was" if total == 1 else f"{total:,} images were"
    return [f"{images} converted to {'L' if channels == 1 else 'RGB'}: {', '.join(parts)}"]
