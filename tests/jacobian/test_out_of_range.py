"""Products below the range of float64: no wider precision shows what they lose. Oracle: the same weights unscaled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.jacobian.out_of_range import lost_below

EPS32 = torch.finfo(torch.float32).eps


def exact_rank(factors: list[Tensor]) -> int:
    """Rank of the product at tolerance paper; scale changes no ratio of singular values."""
    product = torch.eye(factors[0].shape[1], dtype=torch.float64)
    for factor in factors:
        product = factor.double() / factor.abs().max() @ product
    sigma = torch.linalg.svdvals(product)
    return int((sigma >= EPS32 * len(sigma) * sigma[0]).sum())


def chain(factors: list[Tensor]) -> nn.Sequential:
    layers = [nn.Linear(f.shape[1], f.shape[0], bias=False).to(f.dtype) for f in factors]
    for layer, factor in zip(layers, factors, strict=True):
        layer.weight.data = factor
    return nn.Sequential(*layers).eval()


def orthogonal(count: int, scale: float, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q.to(dtype) for _ in range(count)]


@pytest.mark.parametrize(
    ("dtype", "count", "wanted", "images"),
    [
        (torch.float32, 50, ["20", "49"], 1),  # 1e-350
        (torch.float32, 65, ["64"], 2),  # 1e-455
        (torch.float64, 50, ["49"], 2),
        (torch.float64, 65, ["20", "64"], 1),
    ],
)
def test_a_deep_chain_whose_derivative_vanishes(dtype: torch.dtype, count: int, wanted: list[str], images: int) -> None:
    """Rank 0 with bounds [0, 0] was certified where the derivative is 1e-350 times an orthogonal matrix."""
    factors = orthogonal(count, 1e-7, dtype)
    assert exact_rank(factors) == 4
    profile = rs.jacobian_rank(chain(factors), torch.zeros(images, 4, dtype=dtype), cut_points=wanted, progress=False)
    for spectrum in profile[wanted[-1]].spectra:
        assert spectrum is not None
        estimate = spectrum.rank()
        assert estimate.lower <= 4 <= estimate.upper
    assert [f for f in profile.facts if f.kind is FactKind.UNDERFLOW]


@pytest.mark.parametrize("wanted", ["all", ["2"]])
def test_digits_lost_on_the_way_are_in_the_bounds(wanted: Any) -> None:
    """A product of 1e-321 has three digits, and a factor of 1e160 behind it makes it look whole."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(1, 9, size, generator=generator).double() for size in ((4, 2), (2, 4)))
    eye = torch.eye(4, dtype=torch.float64)
    factors = [1e-160 * (a @ b), 1e-161 * eye, 1e160 * eye]
    assert exact_rank(factors) == 2
    profile = rs.jacobian_rank(chain(factors), torch.zeros(1, 4).double(), cut_points=wanted, progress=False)
    spectrum = profile["2"].spectra[0]
    assert spectrum is not None
    assert spectrum.rank().lower <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_zero_stays_certified(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).to(dtype).eval()
    model[0].bias.data.fill_(-1.0)
    profile = rs.jacobian_rank(model, torch.zeros(1, 4, dtype=dtype), cut_points="all", progress=False)
    estimates = [layer.spectra[0].rank() for layer in profile.layers if layer.spectra[0] is not None]
    assert [(e.lower, e.upper) for e in estimates] == [(4, 4), (0, 0), (0, 0)]
    assert not [f for f in profile.facts if f.kind is FactKind.UNDERFLOW]


def test_what_overflows_at_the_usual_factor_is_asked_at_a_lesser() -> None:
    """A factor of 2⁵¹² overflows at 1e200; at 2¹²⁸ the loss below 1e-300 shows."""
    one = torch.tensor([[1.0]], dtype=torch.float64)
    lost = lost_below(lambda g: [g * 1e200, g * 1e-200 * 1e-115 * 1e200], one / 3)
    assert (lost > 0).tolist() == [[False], [True]]
    exact = 1e-115 / 3
    assert float(lost[1, 0]) == pytest.approx(abs(exact - float(one / 3 * 1e-200 * 1e-115 * 1e200)), rel=1e-3)
