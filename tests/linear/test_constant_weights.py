"""Tangents of layers with constant weights beside those of torch's own formulas: the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn import functional as F

from rankscope.linear.constant_weights import CONSTANT_WEIGHTS
from rankscope.linear.other_libraries import Differentiated


def norm(kind: str) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...], bool]:
    """A layer, the shape of its input, and whether it is one with constant weights."""
    layers: dict[str, tuple[nn.Module | Callable[[Tensor], Tensor], tuple[int, ...], bool]] = {
        "maps": (nn.BatchNorm2d(6), (1, 6, 5, 4), True),
        "features": (nn.BatchNorm1d(6), (3, 6), True),
        "sequences": (nn.BatchNorm1d(6), (2, 6, 7), True),
        "volumes": (nn.BatchNorm3d(6), (1, 6, 3, 2, 2), True),
        "tokens": (nn.LayerNorm(6), (1, 7, 6), True),
        "two dimensions": (nn.LayerNorm((3, 6)), (2, 3, 6), True),
        "linear": (nn.Linear(6, 5), (1, 7, 6), True),
        "linear, of one vector": (nn.Linear(6, 5), (6,), True),
        "linear, of many": (nn.Linear(6, 500, bias=False), (2, 3, 70, 6), True),
        "linear, weights of the input": (lambda x: F.linear(x, x * 2), (4, 6), False),
        "no shift": (nn.LayerNorm(6, bias=False), (4, 6), True),
        "no weights": (nn.LayerNorm(6, elementwise_affine=False), (4, 6), False),
        "no weights of maps": (nn.BatchNorm2d(6, affine=False), (1, 6, 5, 4), False),
        "of the batch": (nn.BatchNorm2d(6, track_running_stats=False), (2, 6, 5, 4), False),
        "by keyword": (lambda x: F.layer_norm(x, weight=torch.arange(6.0).to(x), normalized_shape=[6]), (4, 6), True),
        "weights of the input": (lambda x: F.layer_norm(x, [6], x[0], x[1]), (4, 6), False),
        "a shift of the input": (lambda x: F.layer_norm(x, [6], torch.ones(6).to(x), x[1]), (4, 6), False),
        "a constant": (lambda x: F.layer_norm(torch.ones(4, 6).to(x), [6], torch.ones(6).to(x)) * x, (4, 6), False),
    }  # fmt: skip
    for layer in (one for one, *_ in layers.values() if isinstance(one, nn.Module)):
        generator = torch.Generator().manual_seed(1)
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.3
        layer.eval()
    return layers[kind]


KINDS = [
    "maps", "features", "sequences", "volumes", "tokens", "two dimensions", "linear",
    "linear, of one vector", "linear, of many", "linear, weights of the input", "no shift", "no weights",
    "no weights of maps", "of the batch", "by keyword", "weights of the input", "a shift of the input",
    "a constant",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_torch(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape, constant = norm(kind)
    if isinstance(layer, nn.Module):
        layer.to(dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    tangents = torch.randn(3, *shape, generator=generator, dtype=dtype)
    made: list[bool] = []
    for function, own in list(CONSTANT_WEIGHTS.items()):

        def watched(*args: object, own: Callable[..., Tensor | None] = own, **kwargs: object) -> Tensor | None:
            out = own(*args, **kwargs)
            made.append(out is not None)
            return out

        monkeypatch.setitem(CONSTANT_WEIGHTS, function, watched)

    def ours(y: Tensor) -> Tensor:
        with Differentiated():
            return layer(y)

    with torch.no_grad():
        for chunk in (tangents[:1], tangents):
            expected = vmap(lambda v: jvp(layer, (x,), (v,)))(chunk)
            found = vmap(lambda v: jvp(ours, (x,), (v,)))(chunk)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(made) == constant


def test_without_a_tangent_torch_has_its_way() -> None:
    layer = nn.LayerNorm(6)
    assert CONSTANT_WEIGHTS[F.layer_norm](torch.ones(2, 6), [6], layer.weight, layer.bias) is None
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(2, 6), torch.ones(2, 6))
        assert CONSTANT_WEIGHTS[F.layer_norm](x, [6], layer.weight.double(), layer.bias) is None
        assert CONSTANT_WEIGHTS[F.layer_norm](x, [6], layer.weight, layer.bias) is not None
