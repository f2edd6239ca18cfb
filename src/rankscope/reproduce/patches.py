"""Where the patch of Fig. 1 (a–c) lies: at the centre, as the paper's figure has it, or elsewhere, as its appendix."""

from __future__ import annotations

import re
from typing import Any

from rankscope._base.errors import UsageError, nearest, parameter
from rankscope.slicing import Patch

__all__ = ["PATCHES", "patch_at", "patch_of"]

# the paper says of its appendix that it has "other choices of patches"; these are the ones that need no number
PATCHES = ("centre", "top-left", "top-right", "bottom-left", "bottom-right")
_PIXEL = r"([0-9]{1,6}),\s*([0-9]{1,6})"


def patch_of(value: Any) -> str:
    """The place as it stands in a record.

    Raises
    ------
    UsageError
        For what is neither a name nor a pixel.

    >>> patch_of("96, 104")
    '96,104'
    """
    if isinstance(value, str):
        pixel = re.fullmatch(_PIXEL, value.strip())
        if pixel:
            return f"{int(pixel[1])},{int(pixel[2])}"
        if value in PATCHES:
            return value
    raise UsageError(
        f"{parameter('patch')} is {value!r}; {nearest(str(value), PATCHES)}, or give row and column of its first "
        "pixel, such as '96,104'"
    )


def patch_at(place: str, side: int, height: int, width: int) -> Patch:
    """The side × side patch at a place of ``patch_of`` in images of this size.

    >>> patch_at("bottom-left", 16, 224, 224).offset
    (208, 0)
    """
    pixel = re.fullmatch(_PIXEL, place)
    if pixel:
        top, left = int(pixel[1]), int(pixel[2])
        if top + side > height or left + side > width:
            raise UsageError(
                f"{parameter('patch')} {place} puts the {side}×{side} patch outside the {height}×{width} image; give a "
                f"row up to {height - side} and a column up to {width - side}"
            )
        return Patch(side, offset=(top, left))
    if place == "centre":
        return Patch(side, offset=(height // 2 - side // 2, width // 2 - side // 2))
    top = 0 if place.startswith("top") else height - side
    return Patch(side, offset=(top, 0 if place.endswith("left") else width - side))
