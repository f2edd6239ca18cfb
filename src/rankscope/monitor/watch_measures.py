"""What is measured of the network of each checkpoint: metrics of its features, and Jacobian ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from rankscope._base.facts import Fact
from rankscope.features.feature_profile import DIMENSIONS, FeatureProfile
from rankscope.jacobian import JacobianProfile
from rankscope.monitor.watched import WatchedValue

__all__ = ["Measure", "Measured", "of_features", "of_jacobian"]

_NAN = float("nan")


@dataclass(frozen=True)
class Measured:
    """The numbers of one network, and facts on how they came about."""

    values: tuple[WatchedValue, ...]
    facts: tuple[Fact, ...] = ()


Measure: TypeAlias = Callable[[nn.Module], Measured]


def of_features(profile: FeatureProfile, metrics: Sequence[str]) -> Iterator[WatchedValue]:
    """The metrics of every layer; the PCA dimension has bounds."""
    for metric in metrics:
        for layer in profile:
            value = DIMENSIONS[metric](layer)
            low, high = layer.pca_bounds if metric == "pca_dimension" else (_NAN, _NAN)
            number = _NAN if value is None else float(value)
            yield WatchedValue(layer.name, metric, number, float(low), float(high), layer.samples)


def of_jacobian(profile: JacobianProfile) -> Iterator[WatchedValue]:
    """The function rank of every layer, with bounds where it is certified."""
    for row in profile.reading.rows:
        found = row["function_rank"]
        low, high = (float(found["lower"]), float(found["upper"])) if row["certified"] else (_NAN, _NAN)
        yield WatchedValue(row["name"], "jacobian_rank", float(found["value"]), low, high, len(profile.images))
