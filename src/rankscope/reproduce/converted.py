"""Images of another mode than the network takes: converted all the same, and counted by mode."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rankscope._base.facts import Fact, FactKind

__all__ = ["converted_fact", "converted_images"]


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


def converted_fact(converted: Iterable[Iterable[Any]], channels: int) -> tuple[Fact, ...]:
    """One fact with the modes, the number of each and its first file; none where nothing was converted.

    >>> converted_fact([["L", 2, "cat/1.png"]], 3)[0].values["modes"]
    (('L', 2, 'cat/1.png'),)
    """
    rows = [tuple(row) for row in converted]
    values = {"modes": rows, "to": "L" if channels == 1 else "RGB"}
    return (Fact(FactKind.IMAGES_CONVERTED, values),) * bool(rows)
