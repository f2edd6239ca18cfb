"""torch's sequence modules that take the first dimension for time steps are refused; what wraps them is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs

X = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))  # three samples of two steps


def layer(*, batch_first: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.transpose(0, 1))[0].transpose(0, 1)


class OwnForward(nn.GRU):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.transpose(0, 1))[0].transpose(0, 1)


STEPS_FIRST = {
    "RNN": nn.RNN(8, 3),
    "LSTM": nn.LSTM(8, 3),
    "GRU": nn.GRU(8, 3),
    "MultiheadAttention": nn.MultiheadAttention(8, 2),
    "Transformer": nn.Transformer(8, 2, 1, 1, 16),
    "TransformerEncoder": nn.TransformerEncoder(layer(batch_first=False), 1, enable_nested_tensor=False),
    "TransformerEncoderLayer": layer(batch_first=False),
    "TransformerDecoderLayer": nn.TransformerDecoderLayer(8, 2, 16),
    "first of a Sequential": nn.Sequential(nn.GRU(8, 3)),
    "behind layers that keep the dimensions": nn.Sequential(nn.Linear(8, 8), nn.GELU(), layer(batch_first=False)),
    "in DataParallel": nn.DataParallel(nn.GRU(8, 3)),
    "compiled": torch.compile(nn.GRU(8, 3), backend="eager"),
}


@pytest.mark.parametrize("model", STEPS_FIRST.values(), ids=STEPS_FIRST)
def test_steps_first_is_refused_in_one_line_with_both_remedies(model: nn.Module) -> None:
    message = r"with batch_first=False takes the first dimension .* batch_first=True, or wrap it .* transposes$"
    with pytest.raises(rs.UsageError, match=message) as raised:
        rs.jacobian_rank(model.eval(), X)
    assert "\n" not in str(raised.value)


def test_features_refuse_it_too() -> None:
    with pytest.raises(rs.UsageError, match="GRU with batch_first=False takes the first dimension"):
        rs.feature_rank(nn.GRU(8, 3).eval(), X)


@pytest.mark.parametrize("model", [nn.LSTM(8, 3, batch_first=True), layer(batch_first=True)], ids=["LSTM", "encoder"])
def test_two_dimensions_are_one_sequence(model: nn.Module) -> None:
    with pytest.raises(rs.UsageError, match=r"takes two dimensions, here \(3, 8\), for one sequence .* x\[None\]"):
        rs.jacobian_rank(model.eval(), X[:, 0])


@pytest.mark.parametrize(
    "model",
    [Transposed(), OwnForward(8, 3), layer(batch_first=True), nn.Sequential(Transposed())],
    ids=["a wrapper", "a forward of its own", "batch first", "a wrapper in a Sequential"],
)
def test_what_counts_samples_first_is_measured_as_each_sample_alone(model: nn.Module) -> None:
    model = model.eval()
    profile = rs.jacobian_rank(model, X, cut_points="output", columns="all")
    for i in range(len(X)):
        row = X[i : i + 1].double().requires_grad_()
        double = model.double()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            out = double(row).flatten()
        rows = torch.stack([torch.autograd.grad(o, row, retain_graph=True)[0].flatten() for o in out])
        model.float()
        found = profile.layers[-1].spectra[i]
        assert found is not None
        exact = torch.linalg.svdvals(rows).numpy()
        # 1e-5 of σ₁: float32 rounding of a few dozen operations
        np.testing.assert_allclose(found.singular_values, exact, atol=1e-5 * exact[0])
