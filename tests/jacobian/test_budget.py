"""What a tangent needs: a convolution's workspace on a GPU is known by its operator, not by a name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankscope.linear.budget import _LargestOperator


@torch.library.custom_op("rankscope_test::convolution_like", mutates_args=())
def convolution_like(x: Tensor) -> Tensor:
    return x.clone()


@pytest.mark.parametrize(
    ("layer", "x", "factor"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), torch.randn(1, 2, 8, 8), 3),
        (nn.ConvTranspose1d(2, 2, 3, padding=1), torch.randn(1, 2, 64), 3),
        (convolution_like, torch.randn(1, 2, 8, 8), 1),
        (nn.ReLU(), torch.randn(1, 2, 8, 8), 1),
    ],
)
def test_the_workspace_of_convolutions(layer: nn.Module, x: Tensor, factor: int) -> None:
    found = []
    for more in (1.0, 3.0):
        with torch.no_grad(), _LargestOperator(more) as seen:
            layer(x)
        found.append(seen.bytes)
    assert found[0] >= 2 * x.numel() * 4  # input and output
    assert found[1] == factor * found[0]


@pytest.mark.parametrize(
    ("layer", "weights"), [(nn.Linear(200, 100), 0), (nn.Conv1d(200, 100, 1), 200 * 100 + 100), (nn.LayerNorm(200), 0)]
)
def test_weights_are_there_once_for_all_tangents(layer: nn.Module, weights: int) -> None:
    x = torch.randn(1, 200, 1) if isinstance(layer, nn.Conv1d) else torch.randn(1, 200)
    with torch.no_grad(), _LargestOperator(1.0, layer.parameters()) as seen:
        out = layer(x)
    statistics = 2 if isinstance(layer, nn.LayerNorm) else 0
    assert seen.bytes == 4 * (200 + out.numel() + weights + statistics)
