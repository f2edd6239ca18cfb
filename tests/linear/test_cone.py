"""A tangent that is carried on a part of each map is the one that ``vmap(jvp)`` carries whole."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from operations import IMAGES, OPERATIONS, Function
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from rankscope.linear.at_point import AtPoint
from rankscope.linear.regions import Region
from rankscope.linear.traced import TracedNetwork

EPS = torch.finfo(torch.float64).eps


def cropped(function: Callable[[Tensor], Any], x: Tensor, region: Region, chunk: int = 3) -> AtPoint:
    """Random tangents on a region, with every row, some rows and rows that the region does not reach."""
    first = function(x.clone())
    runner: Any = Function(function, len(first) if isinstance(first, tuple) else 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        network = TracedNetwork(runner, SimpleNamespace(x=x))  # type: ignore[arg-type]
        point = AtPoint(network, x, replay=False, region=region)
        tangents = torch.zeros(chunk, *region.shape, dtype=x.dtype)
        inside = torch.randn(chunk, region.count, generator=generator, dtype=x.dtype)
        tangents.flatten(1)[:, torch.from_numpy(region.places)] = inside
        for at in (x, x * 0.7 + 0.1):
            if at is not x:
                point.move(at)
            run = lambda y: runner.outputs(None, y)  # noqa: E731
            expected = vmap(lambda v: jvp(run, (at,), (v.expand_as(at),))[1])(tangents)  # noqa: B023
            for _ in range(2):
                found = point.push(tangents, [None] * len(expected))
            some = [torch.randperm(e[0].numel(), generator=generator)[:7].sort().values for e in expected]
            chosen = point.push(tangents, some)
            for a, b, c, rows in zip(found, expected, chosen, some, strict=True):
                whole = b.reshape(chunk, -1)
                # rounding of each of the few operators, relative to the largest tangent on the way
                torch.testing.assert_close(a, whole, rtol=1e-10, atol=1e-12)
                assert torch.equal(c, a[:, rows])
    return point


CORNERS = {
    "a corner": ((0, 1), (0, 2)),
    "the other corner": ((2, 3), (2, 4)),
    "inside": ((1, 2), (1, 3)),
    "a row": ((1, 2), (0, 4)),
}


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operator_on_a_region(name: str, corner: str) -> None:
    (a, b), (c, d) = CORNERS[corner]
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cropped(OPERATIONS[name], x, Region((3, 4), (range(a, b), range(c, d))))


BOXES = {
    "inside": (range(4), range(2, 4), range(2, 3)),
    "at the edge": (range(4), range(2), range(3, 5)),
    "one channel": (range(1, 2), range(4, 6), range(3)),
    "a point": (range(4), range(3, 4), range(4, 5)),
}


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", IMAGES)
def test_every_image_operator_on_a_box(name: str, box: str) -> None:
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cropped(IMAGES[name], x, Region((4, 6, 5), BOXES[box]))
