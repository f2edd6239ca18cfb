"""Names of layers along an axis and in a legend: short, and still apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from rankscope._base.style import plain_text, points_across

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["layer_labels", "name_layers", "named_places"]

_NAMED = 60  # names of 7 points that stand apart along 17 cm
_APART = 6.4  # points between slanting names of 7 points
_LETTERS, _SHORT = 22, 15  # of a name, and where there are more than a few on a narrow axis (points)
_FEW, _NARROW = 12, 230


def named_places(count: int, most: int = _NAMED) -> list[int]:
    """Which of ``count`` layers have a name along an axis: all, or every second, third, …, and always the last.

    >>> named_places(3), named_places(150)[:3], named_places(150)[-2:]
    ([0, 1, 2], [0, 3, 6], [144, 149])
    """
    places = list(range(0, count, max(1, -(-count // max(most, 1)))))
    return [*places[:-1], count - 1] if places else []


def name_layers(ax: Axes, names: Sequence[str]) -> None:
    """Names of layers along x: as many as stand apart in this width, and a mark for each of the others."""
    room = points_across(ax)
    named = named_places(len(names), int(room / _APART))
    labels = layer_labels(names, _SHORT if room < _NARROW and len(named) > _FEW else _LETTERS)
    ax.set_xticks(named, [labels[k] for k in named], rotation=60, ha="right", rotation_mode="anchor")
    if len(named) < len(names):
        ax.set_xticks(range(len(names)), minor=True)
    ax.set_xlim(-0.4, len(names) - 0.6)
    ax.set_xlabel("layer")


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
