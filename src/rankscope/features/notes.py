"""The sentences of this room's findings, each written once."""

from __future__ import annotations

__all__ = ["constant_layer", "rounded_layer"]


def constant_layer(name: str, samples: int) -> str:
    """A layer without variance among others that have some."""
    return f"{name} gives the same features for all {samples:,} samples: its dimension is 0"


def rounded_layer(name: str, low: int, high: int) -> str:
    """A dimension that the dtype of the features leaves open."""
    return (
        f"{name}: rounding of the features to their dtype leaves the PCA dimension open between {low:,} and {high:,}; "
        "compute the features in float32 or float64"
    )
