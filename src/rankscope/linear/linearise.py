"""A network's forward-mode derivative at one input as a list of plain tensor operations.

Pushing tangents through ``vmap(jvp)`` computes every nonlinearity's derivative again for each tangent, dispatches each
operator through two layers of transforms, and runs normalisation as a dozen element-wise passes. At a fixed input the
derivative is linear with constant coefficients: here the network is traced once into operators, each operator's
coefficients are computed once an image, and a chunk of tangents then costs about one batched forward pass.

Rules for the common operators stand in ``rules``; every other operator goes through ``vmap(jvp)`` by itself. The result
is compared with the plain path on the first image, and the float64 certificate, which uses the plain path, covers it
on every image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankscope.linear.at_point import AtPoint
from rankscope.linear.methods import METHODS, Method, Push
from rankscope.linear.modes import derived_by_torch, unknown_operators
from rankscope.linear.regions import Region
from rankscope.linear.runner import Rows, Runner
from rankscope.linear.traced import TracedNetwork
from rankscope.linear.traced_here import TracedHere
from rankscope.slicing import Sample

__all__ = ["Linearised", "same_call"]


def same_call(a: Sample, b: Sample) -> bool:
    """Whether everything but the differentiated tensor is equal: the trace holds it as constants."""
    if a.extra is b.extra:
        return True
    if a.keyword != b.keyword or a.extra.keys() != b.extra.keys():
        return False
    return all(_same_value(a.extra[k], b.extra[k]) for k in a.extra)


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same_value(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same_value, left, right))
    return isinstance(left, bool | int | float | str | None) and bool(left == right)


class Linearised:
    """Stands in for a ``Method`` for one runner: traces on the first image, linearises once an image.

    Tangents that are zero outside of a region of the input are carried only where they may differ from zero
    (``within``). On a GPU both steps are recorded as CUDA graphs, so that a further image costs no launches.
    """

    def __init__(self, runner: Runner, method: Method = METHODS[0], *, replay: bool = False) -> None:
        self.runner, self.method = runner, method
        self.replay = replay
        self._networks: dict[tuple[int, ...], tuple[TracedNetwork, Sample]] = {}
        self._points: dict[tuple[tuple[int, ...], Region | None], AtPoint] = {}
        self._point: AtPoint | None = None
        self._plain: dict[tuple[int, ...], bool] = {}

    def __call__(self, runner: Runner, sample: Sample, tangents: Tensor, rows: Rows = None) -> tuple[Tensor, ...]:
        return self._push(runner, sample, tangents, rows, None)

    def within(self, region: Region | None) -> Push:
        """The same for tangents that are zero outside of a region of one image's input."""

        def push(runner: Runner, sample: Sample, tangents: Tensor, rows: Rows = None) -> tuple[Tensor, ...]:
            return self._push(runner, sample, tangents, rows, region)

        return push

    def reached(self, runner: Runner, sample: Sample, region: Region | None) -> tuple[Region, ...]:
        """Where tangents of the region may differ from zero at each cut point."""
        return self.at(runner, sample, region).made.regions

    def of_place(self, place: int) -> None:
        """There is none of one cut point: it would be traced once more."""

    def here(self, runner: Runner, sample: Sample) -> TracedHere:
        """The same at this sample alone, for a caller who records whole products."""
        network = self._network(runner, sample)
        point = self._points.pop((tuple(sample.x.shape), None), None)
        self._point = None  # coefficients are held once: those of the checks serve where they are of this sample
        if point is None or point.moved or point.at is not sample.x:
            del point
            point = AtPoint(network, sample.x, replay=False)
        return TracedHere(point)

    def _push(
        self, runner: Runner, sample: Sample, tangents: Tensor, rows: Rows, region: Region | None
    ) -> tuple[Tensor, ...]:
        chosen = [None] * len(runner.keys) if rows is None else rows
        out = self.at(runner, sample, region).push(tangents, chosen)
        for key, few, t in zip(runner.keys, chosen, out, strict=True):
            if t.shape[1] == 0 and few is None:
                raise RuntimeError(f"no tangent reached {key[0]!r} in the traced network")
        return out

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Flat outputs of every cut point at the image that was asked for last."""
        assert self._point is not None
        return self._point.outputs

    def at(self, runner: Runner, sample: Sample, region: Region | None = None) -> AtPoint:
        """The network linearised at a sample."""
        shape = tuple(sample.x.shape)
        self._point = None
        network = self._network(runner, sample)
        point = self._points.get((shape, region))
        if point is None:
            point = self._points[shape, region] = AtPoint(network, sample.x, replay=self.replay, region=region)
        elif point.at is not sample.x:
            point.move(sample.x)
        self._drop_unused(shape, point)
        self._point = point
        return point

    def _network(self, runner: Runner, sample: Sample) -> TracedNetwork:
        """The trace for samples of this shape, made anew where the call takes other values beside."""
        shape = tuple(sample.x.shape)
        known = self._networks.get(shape)
        if known is None or not same_call(known[1], sample):
            for key in [k for k in self._points if k[0] == shape]:
                del self._points[key]
            self._plain.pop(shape, None)
            with self.method.kernels():
                known = self._networks[shape] = TracedNetwork(runner, sample), sample
        return known[0]

    def modes_agree(self, runner: Runner, sample: Sample) -> bool:
        """Whether forward and reverse mode must agree at a sample that was swept: by rule, not by a reverse pass."""
        point = self._point
        if point is None or point.at is not sample.x or unknown_operators(point.network):
            return False
        if point.made.ties is not None and bool(point.made.ties):
            return False
        shape = tuple(sample.x.shape)
        if shape not in self._plain:
            self._plain[shape] = derived_by_torch(runner, self.method, sample)
        return self._plain[shape]

    def derived(self, sample: Sample, *, by_torch: bool) -> None:
        """What a pass in reverse mode at a sample of this shape has shown: ``modes_agree`` needs none of its own."""
        self._plain[tuple(sample.x.shape)] = by_torch

    def _drop_unused(self, shape: tuple[int, ...], kept: AtPoint) -> None:
        """What the first image's checks alone needed holds its coefficients no longer than that image."""
        for key, point in list(self._points.items()):
            if key[0] == shape and point is not kept and point.at is not kept.at and not point.moved:
                del self._points[key]
