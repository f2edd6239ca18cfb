"""Where forward mode multiplies zero by infinity; against float64 reverse-mode rows and differences of the function."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.jacobian import by_rows

EXPECTED: dict[str, Callable[[Tensor], Tensor]] = {
    "root of relu": lambda h: torch.sqrt(torch.relu(h)),
    "power of a clamped value": lambda h: h.clamp(min=0) ** 0.3,
    "arccosine of clipped values": lambda h: torch.acos((2 * h).clamp(-1, 1)),
    "arctangent of a gate": lambda h: torch.where(h.abs() < 0.9, h, torch.ones_like(h)).arcsin(),
}


class Singular(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.mid, self.head, self.function = nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.function(self.stem(x))))


def sample_of(name: str) -> tuple[Singular, Tensor]:
    torch.manual_seed(1)
    return Singular(EXPECTED[name]).eval(), torch.randn(3, 6)


def rows_of(model: nn.Module, x: Tensor) -> np.ndarray:
    x = x.double()[None].requires_grad_()
    out = model(x).flatten()
    return torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0].flatten() for v in out]).numpy()


def differences(model: nn.Module, x: Tensor, step: float = 1e-6) -> np.ndarray:
    x = x.double()[None]
    with torch.no_grad():
        columns = [(model(x + step * e) - model(x - step * e))[0] / (2 * step) for e in torch.eye(6).double()]
    return torch.stack(columns, 1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXPECTED)
def test_reverse_mode_has_the_numbers(name: str, dtype: torch.dtype) -> None:
    model, x = sample_of(name)
    double = copy.deepcopy(model).double()
    pushed = torch.func.jvp(model, (x[:1],), (torch.ones(1, 6),))[1]
    assert not torch.isfinite(pushed).all()
    model, x = model.to(dtype), x.to(dtype)
    profile = rs.jacobian_rank(model, x, cut_points=["stem", "mid", "head"], columns="all", tolerance=1e-3)
    assert [layer.name for layer in profile.layers] == ["stem", "mid", "head"]
    for i in range(3):
        truth = rows_of(double, x[i])
        # the third derivative near the singularity is some 1e3: 1e3 · step² and rounding, 1e-15 / step
        np.testing.assert_allclose(truth, differences(double, x[i]), rtol=0, atol=1e-6)
        sigma = np.linalg.svd(truth, compute_uv=False)
        spectrum = profile.layers[2].spectra[i]
        assert spectrum is not None
        bound = spectrum.error_bound + spectrum.square_error**0.5
        assert np.abs(sigma - spectrum.singular_values).max() <= bound
        rank = int((sigma > 1e-3 * sigma[0]).sum())
        assert profile.reading.lower[2, i] <= rank <= profile.reading.upper[2, i]
    assert profile.reading.certified.all()
    (fact,) = of_kind(profile.facts, FactKind.FORWARD_NOT_FINITE)
    assert fact["where"] == "mid"


def test_a_sample_that_forward_mode_has_numbers_for_is_swept() -> None:
    model, x = sample_of("root of relu")
    with torch.no_grad():
        model.stem.bias.fill_(30.0)  # every unit is on
        x[1, 0] = -30 / model.stem.weight[0, 0]
        x[1] *= 3  # but on this sample
    together = rs.jacobian_rank(model, x, cut_points=["head"], columns="all", tolerance=1e-3)
    assert len(of_kind(together.facts, FactKind.FORWARD_NOT_FINITE)) == 1
    alone = rs.jacobian_rank(model, x[[0, 2]], cut_points=["head"], columns="all", tolerance=1e-3)
    assert not of_kind(alone.facts, FactKind.FORWARD_NOT_FINITE)
    double = copy.deepcopy(model).double()
    for i in range(3):
        spectrum = together.layers[0].spectra[i]
        assert spectrum is not None
        sigma = np.linalg.svd(rows_of(double, x[i]), compute_uv=False)
        assert np.abs(sigma - spectrum.singular_values).max() <= spectrum.error_bound


@pytest.mark.parametrize(
    "function",
    [
        lambda h: torch.sqrt(h * h),  # 0 · inf in reverse mode too: the function has a kink there
        torch.sqrt,  # infinite
        lambda h: torch.relu(h) * 1e30 * 1e30,  # values beyond float32
    ],
)
def test_what_neither_mode_has_numbers_for_is_not_measured(function: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), Singular(function).requires_grad_(False))
    model[1].stem, model[1].head = nn.Identity(), nn.Identity()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
    with pytest.raises(rs.MeasurementError, match="NaN or infinite entries on every image"):
        rs.jacobian_rank(model, torch.tensor([[0.0, 1.0, 2.0]]), cut_points=["1"], columns="all")


def test_too_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_rows, "MAX_REVERSE_ROWS", 7)
    model, x = sample_of("root of relu")
    profile = rs.jacobian_rank(model, x[:1], cut_points=["mid", "head"], columns="all")
    assert [layer.name for layer in profile.layers] == ["head"]
    assert "8 rows" in str(profile.unmeasured["mid"])


def test_without_a_certificate() -> None:
    model, x = sample_of("root of relu")
    profile = rs.jacobian_rank(model, x, cut_points=["head"], columns="all", certify=False, tolerance=1e-3)
    sigma = np.linalg.svd(rows_of(copy.deepcopy(model).double(), x[0]), compute_uv=False)
    spectrum = profile.layers[0].spectra[0]
    assert spectrum is not None
    np.testing.assert_allclose(spectrum.singular_values, sigma, rtol=0, atol=1e-5 * sigma[0])
    assert not profile.reading.certified.any()
