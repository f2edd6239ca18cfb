"""A traced network linearised at one sample, for products with its derivative that a caller may record.

Nothing is recorded here, so that a recording of a whole product may hold these steps; and the steps of one output alone
may be taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from rankscope.linear.at_point import AtPoint
from rankscope.linear.methods import Push
from rankscope.linear.regions import Region
from rankscope.linear.runner import Rows, Runner
from rankscope.linear.steps import Step, leading_to, push
from rankscope.slicing import Sample

__all__ = ["TracedHere"]


@dataclass(frozen=True)
class TracedHere:
    """Stands in for a ``Method`` at the point's sample alone, on tangents that may differ from zero everywhere."""

    point: AtPoint
    place: int | None = None
    """The one output that is asked for; ``None``: all of them."""
    steps: tuple[Step, ...] = ()
    """Those that lead to it."""

    def of_place(self, place: int) -> TracedHere:
        """The same for one of all outputs."""
        point = self.point
        return replace(self, place=place, steps=leading_to(point.made.steps, point.network.outputs[place]))

    def reached(self, runner: Runner, sample: Sample, region: Region | None) -> None:
        """Where tangents may differ from zero is not followed."""

    def within(self, region: Region | None) -> Push:
        """Tangents are carried everywhere, whatever the region."""
        return self._push

    def _push(self, runner: Runner, sample: Sample, tangents: Tensor, rows: Rows = None) -> tuple[Tensor, ...]:
        point = self.point
        if sample.x is not point.at:
            raise RuntimeError("the network was linearised at another sample")
        places = list(range(len(point.network.outputs))) if self.place is None else [self.place]
        chosen = dict(zip(places, [None] * len(places) if rows is None else rows, strict=True))

        def take(place: int, tangent: Tensor) -> Tensor:
            flat, some = tangent.reshape(len(tangent), -1), chosen[place]
            return flat.clone() if some is None else flat.index_select(1, some)

        steps = point.made.steps if self.place is None else self.steps
        full = tangents[:, None].expand(-1, len(sample.x), *tangents.shape[1:])
        out = push(point.network, steps, full, take, places)
        for key, place, tangent in zip(runner.keys, places, out, strict=True):
            if tangent.shape[1] == 0 and chosen[place] is None:
                raise RuntimeError(f"no tangent reached {key[0]!r} in the traced network")
        return tuple(out)
