"""Names of the user's inside a line of text."""

from __future__ import annotations

__all__ = ["counted", "noun", "one_line", "own_verb", "was"]


_IRREGULAR = {"be": ("is", "are"), "have": ("has", "have")}


def one_line(text: object) -> str:
    r"""A text that stays on its line: what cannot be printed, such as a line's end or a mark that turns the direction
    of writing, as its escape.

    >>> print(one_line("conv\n1"), one_line("a b"))
    conv\n1 a b
    """
    said = str(text)
    if said.isprintable():
        return said
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in said)


def counted(count: int, one: str, several: str | None = None) -> str:
    """A count with its noun.

    >>> counted(1, "image"), counted(2048, "image"), counted(3, "class", "classes")
    ('1 image', '2,048 images', '3 classes')
    """
    return f"{count:,} {noun(count, one, several)}"


def noun(count: int, one: str, several: str | None = None) -> str:
    """The noun of so many things, where the count itself is not said.

    >>> noun(1, "position"), noun(2, "position"), noun(2, "class", "classes")
    ('position', 'positions', 'classes')
    """
    return one if count == 1 else several or f"{one}s"


def own_verb(count: int, verb: str) -> str:
    """The verb of so many things.

    >>> own_verb(1, "start"), own_verb(2, "start"), own_verb(1, "be"), own_verb(2, "be"), own_verb(1, "have")
    ('starts', 'start', 'is', 'are', 'has')
    """
    one, several = _IRREGULAR.get(verb, (f"{verb}s", verb))
    return one if count == 1 else several


def was(count: int) -> str:
    """The past of "to be" for so many things.

    >>> was(1), was(2)
    ('was', 'were')
    """
    return "was" if count == 1 else "were"
