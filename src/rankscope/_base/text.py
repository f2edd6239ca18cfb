"""Names of the user's inside a line of text."""

from __future__ import annotations

__all__ = ["one_line"]


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
