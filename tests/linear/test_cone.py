"""A tangent that is carried on a part of each map is the one that ``vmap(jvp)`` carries whole."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from operations import IMAGES, OPERATIONS, Function
from torch import Tensor, nn
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
            reached = [region.index.on(x.device) for region in point.made.regions]
            for a, c, rows in zip(found, point.push(tangents, reached), reached, strict=True):
                assert torch.equal(c, a[:, rows])
                assert torch.equal(torch.zeros_like(a).index_copy(1, rows, c), a)  # no other row is reached
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


class UNet(nn.Module):
    """Two levels, with a transposed convolution and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), nn.ConvTranspose2d(8, 6, 2, 2)
        self.e = nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        return self.e(torch.cat([a, self.d(self.c(self.b(a).relu()))], 1))


NETWORKS = {
    "resnet10t": (64, 16),
    "tf_efficientnet_b0": (64, 8),
    "convnext_atto": (64, 16),
    "test_vit": (160, 16),
    "swin_tiny_patch4_window7_224": (224, 16),
}


@pytest.mark.parametrize("name", ["unet", *NETWORKS])
def test_networks_carry_what_they_carry_whole(name: str) -> None:
    """Within 64 eps of the tangent's norm: sums of the same terms in another order."""
    side, patch = NETWORKS.get(name, (31, 5))
    if name == "unet":
        side, model = 32, UNet()
    else:
        timm = pytest.importorskip("timm")
        options = {"embed_dim": 24, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 4, 8)} if "swin" in name else {}
        model = timm.create_model(name, **options)
    model = model.double().eval()
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = (side - patch) // 2 + 1  # across the edges of strides, tokens and windows
    box = range(start, start + patch)
    region = Region((3, side, side), (range(3), box, box))
    function: Any = lambda y: (model(y),) if name == "unet" else tuple(_stages(model, y))  # noqa: E731
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        runner: Any = Function(function, len(function(x)))
        network = TracedNetwork(runner, SimpleNamespace(x=x))  # type: ignore[arg-type]
        point = AtPoint(network, x, replay=False, region=region)
        tangents = torch.zeros(2, 3, side, side, dtype=torch.float64)
        tangents[:, :, start : start + patch, start : start + patch] = torch.randn(2, 3, patch, patch).double()
        expected = vmap(lambda v: jvp(function, (x,), (v[None],))[1])(tangents)
        found = point.push(tangents, [None] * len(expected))
    assert any(not r.is_whole for r in point.made.regions) or name in ("tf_efficientnet_b0", "test_vit")
    for a, b in zip(found, expected, strict=True):
        whole = b.reshape(2, -1)
        assert bool(((a - whole).norm(dim=1) <= 64 * EPS * whole.norm(dim=1).clamp_min(1e-30)).all())


def _stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []
    chosen = [m for n, m in model.named_modules() if n.rpartition(".")[2].isdigit() and n.count(".") == 1][:6]
    hooks = [m.register_forward_hook(lambda _, __, out: kept.append(out.clone())) for m in chosen]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return kept
