"""A component at the user's own samples. The oracle is float64 reverse mode and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind

X = torch.randn(9, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh()).eval()


class Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], index


@pytest.mark.parametrize(
    "inputs",
    [X, X.numpy(), X.double(), Pairs(), torch.utils.data.DataLoader(Pairs(), batch_size=4), {"input": X}],
    ids=["tensor", "array", "float64", "data set", "loader", "mapping"],
)
def test_the_jacobian_is_that_of_the_component_at_the_samples(inputs: Any) -> None:
    net = block()
    found = rs.probe(net, inputs=inputs, jacobian_points=2, device="cpu")
    double = block().double()
    for point, spectrum in enumerate(found.jacobian_after):
        rows = torch.autograd.functional.jacobian(double, X[point : point + 1].double()).reshape(27, 18)
        np.testing.assert_allclose(spectrum.singular_values[:18], torch.linalg.svdvals(rows), rtol=1e-9, atol=1e-12)
    before = np.linalg.eigvalsh(np.cov(X.flatten(1).double().numpy().T))[::-1]
    after = np.linalg.eigvalsh(np.cov(double(X.double()).detach().flatten(1).numpy().T))[::-1]
    np.testing.assert_allclose(found.features_before.singular_values[:8], before[:8], rtol=1e-9)
    np.testing.assert_allclose(found.features_after.singular_values[:8], after[:8], rtol=1e-9)
    assert (found.input_shape, found.batch, found.front) == ((2, 3, 3), 9, "none")
    assert found.rank_before.value == 18
    assert "9 samples of 2×3×3 as given" in str(rs.ProbeResults((found,), 0.0, None))
    assert type(found).load is not None


def test_named_components_and_a_limit() -> None:
    x = torch.randn(9, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    found = rs.probe("relu", inputs=x, limit=4, device="cpu")
    assert found.batch == 4
    assert found.jacobian_after[0].rank("paper").value == int((x[0] > 0).sum())


def test_training_mode_at_given_samples() -> None:
    norm = nn.BatchNorm2d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    found = rs.probe(norm, inputs=X, training=True, device="cpu")
    assert {fact.kind for fact in found.facts} == {FactKind.SAMPLES_COUPLED}
    assert norm.training
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


@pytest.mark.parametrize(
    ("component", "options", "error", "message"),
    [
        (block(), {"inputs": X, "batch": 5}, rs.UsageError, "inputs have their own batch; leave it out"),
        (block(), {"inputs": X, "input_shape": (2, 3, 3)}, rs.UsageError, "have their own input_shape"),
        (block(), {"inputs": X, "front": "orthogonal"}, rs.UsageError, "no layer stands before given inputs"),
        (block(), {"inputs": X[:1]}, rs.UsageError, "needs two samples; inputs hold 1"),
        (block(), {"limit": 3}, rs.UsageError, "limit says how inputs are read; give inputs"),
        (block(), {"inputs": {"foo": X}}, rs.UsageError, "'foo', which forward does not take"),
        (block(), {"inputs": X * torch.nan}, rs.DataError, "NaN"),
        (block(), {"inputs": X[:, :1]}, rs.ModelError, "failed on features of shape"),
        (
            Masked(),
            {"inputs": {"x": X, "mask": X}, "differentiate": "x", "per_sample": "mask"},
            rs.UsageError,
            "a component has one input",
        ),
        (nn.Tanh(), {"inputs": [(torch.zeros(3), 0), (torch.zeros(4), 0)]}, rs.DataError, "samples of one shape"),
        (block(), {"inputs": X, "jacobian_points": 10}, rs.UsageError, "points are samples of the batch"),
    ],
)
def test_what_cannot_be_meant_is_refused(component: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        rs.probe(component, device="cpu", **options)
