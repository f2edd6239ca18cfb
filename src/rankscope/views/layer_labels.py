"""Names of layers along an axis and in a legend: short, and still apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from rankscope._base.style import plain_text

__all__ = ["layer_labels", "named_places"]

_NAMED = 60  # names of 7 points that stand apart along 17 cm


def named_places(count: int) -> list[int]:
    """Which of ``count`` layers have a name along an axis: all, or every second, third, ….

    >>> named_places(3), named_places(150)[:3]
    ([0, 1, 2], [0, 3, 6])
    """
    return list(range(0, count, max(1, -(-count // _NAMED))))


def layer_labels(names: Sequence[str], most: int = 30) -> list[str]:
    """Each name in at most ``most`` letters; where the middle decides, other parts are shortened in its place.

    >>> layer_labels(["stem", "layer1.0"])
    ['stem', 'layer1.0']
    >>> layer_labels([f"backbone.encoder.layers.{i}.attention.output" for i in (7, 8)])
    ['…7.attention.output', '…8.attention.output']
    """
    plain = [plain_text(name, most) for name in names]
    if _apart(plain, names):
        return plain
    parts = [name.split(".") for name in names]
    shared = len(list(takewhile(lambda same: len(set(same)) == 1, zip(*(p[:-1] for p in parts), strict=False))))
    short = [plain_text("…" * bool(shared) + _abbreviated(p[shared:], most - 1), most) for p in parts]
    if _apart(short, names):
        return short
    return [plain_text(f"{place}: {name}", most) for place, name in enumerate(names, 1)]


def _apart(labels: Sequence[str], names: Sequence[str]) -> bool:
    return len(set(labels)) == len(set(names))


def _abbreviated(parts: list[str], most: int) -> str:
    """Words from the left by their first three letters until it fits; numbers stay whole."""
    for place, part in enumerate(parts):
        if len(".".join(parts)) <= most:
            break
        if not part.isdigit():
            parts[place] = part[:3]
    return ".".join(parts)
