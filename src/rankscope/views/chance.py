"""The sentences about an accuracy that one answer for all reaches, written once."""

from __future__ import annotations

__all__ = ["at_chance", "kept_by_chance"]


def at_chance(full: float, share: float, most: int, accuracy: str, *, by: str = "head") -> str:
    """A head that is no better than one answer for all."""
    return (
        f"accuracy is at chance: {full:.2%}, where always answering class {most} gives {share:.2%}; check that labels "
        f"and {by} use the same class order" + _balance(accuracy)
    )


def kept_by_chance(kept: float, share: float, most: int, accuracy: str, *, what: str = "dimension") -> str:
    """A threshold that one answer for all reaches."""
    return (
        f"the {what} says little: always answering class {most} gives {share:.2%} of the samples, and {kept:.2%} is "
        "all that is to be kept" + _balance(accuracy)
    )


def _balance(accuracy: str) -> str:
    return "" if accuracy == "balanced" else '; accuracy="balanced" counts every class alike'
