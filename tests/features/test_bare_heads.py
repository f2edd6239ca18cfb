"""A model that is its own head, and one with a single output, are collected as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankscope._base.errors import ModelError
from rankscope.features import classification_dimension, collect


class _Named(nn.Linear):
    """Called by name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("given", [{}, {"head": "output"}, {"cut_points": "output"}, {"cut_points": ["output"]}])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["bare", "wrapped"])
def test_a_model_that_is_one_linear_layer(inputs: torch.Tensor, tmp_path: Path, given: Any, wrap: Any) -> None:
    net = nn.Linear(3, 2)
    found = collect(wrap(net), (inputs, torch.arange(20) % 2), out=tmp_path, **given)
    assert list(found.moments) == ["output"]
    assert torch.equal(found.features.cpu(), inputs)
    net.cpu()  # DataParallel moves it to a GPU where there is one
    made = (inputs @ net.weight.T + net.bias).detach()
    torch.testing.assert_close(found.logits.cpu(), made)
    torch.testing.assert_close(found.moments["output"].mean.cpu(), made.double().mean(0), rtol=1e-6, atol=1e-6)
    again = collect(wrap(net), (inputs, torch.arange(20) % 2), out=tmp_path, **given)
    assert again.resumed == 20


def test_a_model_that_is_called_by_name(inputs: torch.Tensor, tmp_path: Path) -> None:
    found = collect(_Named(3, 2), ({"x": inputs}, torch.arange(20) % 2), out=tmp_path)
    assert torch.equal(found.features, inputs)


@pytest.mark.parametrize(
    ("net", "head", "remedy"),
    [
        (nn.Linear(3, 2), "", "known are 'output'"),
        (nn.Linear(3, 2), "outptu", "did you mean 'output'"),
        (nn.Sequential(nn.Linear(3, 2)), "output", "known are '0'"),
    ],
)
def test_an_unknown_head_is_refused_with_those_there_are(
    inputs: torch.Tensor, tmp_path: Path, net: nn.Module, head: str, remedy: str
) -> None:
    with pytest.raises(ModelError, match=f"has no layer '{head}' to be the head; {remedy}"):
        collect(net, (inputs, torch.arange(20) % 2), out=tmp_path, head=head)


@pytest.mark.parametrize("net", [nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))])
def test_one_output_is_a_binary_classifier(inputs: torch.Tensor, tmp_path: Path, net: nn.Module) -> None:
    with torch.no_grad():  # some samples on either side
        list(net.parameters())[-1].sub_(net(inputs).mean())
    made = net(inputs).detach()[:, 0]
    labels = (made > 0).long()
    found = collect(net, (inputs, labels), out=tmp_path)
    torch.testing.assert_close(found.logits, torch.stack([torch.zeros(20), made], 1))
    assert torch.equal(found.logits.argmax(1), labels)
    assert classification_dimension(found.features, found.labels, found.head).full_accuracy == 1.0
    assert collect(net, (inputs, labels), out=tmp_path).resumed == 20
