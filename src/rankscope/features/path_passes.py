"""Passes of a call's samples: all in one where that changes nothing, again where they lead to further layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from rankscope.features.path_layers import PathLayers
from rankscope.features.shared_pass import SharedPass
from rankscope.slicing.calls import Call
from rankscope.slicing.sample import Sample

__all__ = ["PathPasses"]

T = TypeVar("T")


class PathPasses(Generic[T]):
    """The order of steps: look whether samples share a pass, make it, take in further layers, look and make it again.

    ``make`` makes one pass and gives what is kept of it, which later passes leave as it is. ``keep`` begins to record
    further layers.
    """

    def __init__(
        self, paths: PathLayers, sharing: SharedPass, make: Callable[[Sample], T], keep: Callable[[list[str]], None]
    ) -> None:
        self.paths, self.sharing, self.make, self.keep = paths, sharing, make, keep

    def of(self, call: Call) -> Iterator[tuple[T, Call]]:
        """What the samples of a call leave: all of them together, or each by itself where they do not share a pass."""
        alone = self.sharing.alone(call)
        if not alone:
            made, further = self._pass(call)
            alone = further and self.sharing.alone(call)  # of the further layers too
            if not alone:
                yield made, call
                return
        for i in range(len(call)):
            part = call.part(i, i + 1)
            yield self._pass(part)[0], part

    def _pass(self, call: Call) -> tuple[T, bool]:
        """One pass, again where it leads to further layers; and whether it does."""
        self.paths.begin()
        samples = call.rows(0, len(call), "a batch")
        made = self.make(samples)
        further = self.paths.take_in(call.rows(0, 1, "a sample"))
        if not further:
            return made, False
        self.keep(further)
        self.sharing.look_again()
        return self.make(samples), True
