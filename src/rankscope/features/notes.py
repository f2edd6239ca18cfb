"""The sentences of this room's findings, each written once."""

from __future__ import annotations

__all__ = ["at_chance", "constant_layer", "kept_by_chance", "rounded_layer"]


def at_chance(full: float, share: float, most: int, accuracy: str) -> str:
    """A head that is no better than one answer for all."""
    return (
        f"accuracy is at chance: {full:.2%}, where always answering class {most} gives {share:.2%}; check that labels "
        "and head use the same class order" + _balance(accuracy)
    )


def kept_by_chance(kept: float, share: float, most: int, accuracy: str) -> str:
    """A threshold that one answer for all reaches."""
    return (
        f"the dimension says little: always answering class {most} gives {share:.2%} of the samples, and {kept:.2%} is "
        "all that is to be kept" + _balance(accuracy)
    )


def _balance(accuracy: str) -> str:
    return "" if accuracy == "balanced" else '; accuracy="balanced" counts every class alike'


def constant_layer(name: str, samples: int) -> str:
    """A layer without variance among others that have some."""
    return f"{name} gives the same features for all {samples:,} samples: its dimension is 0"


def rounded_layer(name: str, low: int, high: int) -> str:
    """A dimension that the dtype of the features leaves open."""
    return (
        f"{name}: rounding of the features to their dtype leaves the PCA dimension open between {low:,} and {high:,}; "
        "compute the features in float32 or float64"
    )
