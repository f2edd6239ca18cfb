"""Words that several sentences share: counts with their noun, names in a row, numbers, shapes.

Every count that people read has a comma between thousands ("2,048 images"). Seeds, shapes and places such as
``layer 1024`` are names and have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from rankscope._base.facts import FactKind
from rankscope._base.text import counted, noun, own_verb, was

__all__ = [
    "Sentences",
    "Values",
    "bounds",
    "capital",
    "counted",
    "first_few",
    "gibibytes",
    "gigabytes",
    "in_columns",
    "joined",
    "noun",
    "number",
    "own_verb",
    "probability",
    "shape_of",
    "shapes_of",
    "signed",
    "span",
    "was",
]

Values = Mapping[str, Any]
Sentences = dict[FactKind, Callable[[Values], str]]  # of the values of a fact of that kind

_NAMED = 3  # names in one sentence; tables have them all


def number(value: float) -> str:
    """A count, or the median of counts.

    >>> number(2048), number(40.5), number(float("nan"))
    ('2,048', '40.5', '-')
    """
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def signed(value: float) -> str:
    """A weight with its sign, in two decimals.

    >>> signed(-0.576), signed(0.5)
    ('−0.58', '+0.50')
    """
    return f"{value:+.2f}".replace("-", "−")


def bounds(lower: int, upper: int) -> str:
    """Both ends of what is certain.

    >>> bounds(64, 1064)
    '[64, 1,064]'
    """
    return f"[{lower:,}, {upper:,}]"


def joined(names: Iterable[str]) -> str:
    """All names.

    >>> joined(["a", "b", "c"]), joined(["a"])
    ('a, b and c', 'a')
    """
    each = list(names)
    return " and ".join([", ".join(each[:-1]), each[-1]]) if len(each) > 1 else "".join(each)


def with_values(found: Mapping[str, object]) -> str:
    """Names and their values, such as packages and their versions.

    >>> with_values({"python": "3.12", "torch": "2.11"})
    'python 3.12, torch 2.11'
    """
    return ", ".join(f"{name} {value}" for name, value in found.items())


def first_few(names: Sequence[str], most: int = _NAMED) -> str:
    """The first names, and how many more there are.

    >>> first_few(["a", "b", "c", "d"]), first_few(["a", "b"])
    ('a, b, c and 1 more', 'a, b')
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def probability(value: float) -> str:
    """A small probability as a power of ten.

    >>> probability(1e-6), probability(1e-10)
    ('1e-6', '1e-10')
    """
    return f"{value:.0e}".replace("e-0", "e-")


def capital(text: str) -> str:
    """The text at the start of a sentence; code keeps its letters.

    >>> capital("linearised network"), capital("vmap(jvp)")
    ('Linearised network', 'vmap(jvp)')
    """
    first = text.split(" ", 1)[0]
    return text if "(" in first else text[:1].upper() + text[1:]


def span(least: float, most: float, form: str = ",") -> str:
    """One number, or the smallest and the largest of several.

    >>> span(24, 24), span(24, 1060)
    ('24', '24–1,060')
    """
    return format(most, form) if least == most else f"{least:{form}}–{most:{form}}"


def shape_of(shape: Sequence[int]) -> str:
    """A shape, without commas, since it is read as a name.

    >>> shape_of((3, 2048, 7))
    '3×2048×7'
    """
    return "×".join(map(str, shape))


def shapes_of(shapes: Iterable[Sequence[int]]) -> str:
    """Shapes in words; of more than three the first and how many more.

    >>> shapes_of([(5, 8), (7, 8)])
    '5×8 and 7×8'
    """
    each = [shape_of(shape) for shape in shapes]
    return first_few(each, 2) if len(each) > _NAMED else joined(each)


def gigabytes(count: float) -> str:
    """A size on disk or in memory, in powers of ten.

    >>> gigabytes(7.7e6), gigabytes(5.155e12)
    ('0.0077 GB', '5,155 GB')
    """
    value = count / 1e9
    if not math.isfinite(value):
        return "unknown"
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.2g} GB"


def gibibytes(count: float) -> str:
    """A size in memory, in powers of two.

    >>> gibibytes(3 * 2**29), gibibytes(2**42)
    ('1.5 GiB', '4,096 GiB')
    """
    value = count / 2**30
    return f"{value:,.0f} GiB" if value >= 100 else f"{value:.3g} GiB"


def in_memory(count: float) -> str:
    """A size in memory in the unit that suits it.

    >>> in_memory(3 * 2**29), in_memory(3 * 2**19)
    ('1.5 GiB', '1.5 MiB')
    """
    return gibibytes(count) if count >= 2**28 else f"{count / 2**20:.3g} MiB"


def in_columns(lines: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> list[str]:
    """Lines of cells as columns; those of ``left`` begin on the left, numbers end on the right.

    >>> in_columns([["layer", "rank"], ["a", "7"]])
    ['layer  rank', 'a         7']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def cell(place: int, text: str) -> str:
        return text.ljust(widths[place]) if place in left else text.rjust(widths[place])

    return ["  ".join(cell(place, text) for place, text in enumerate(line)).rstrip() for line in lines]
