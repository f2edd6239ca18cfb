"""Products below the range of float64: no wider precision shows what they lose. Oracle: the same weights unscaled."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.jacobian.out_of_range import lost_below
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.runner import Runner
from rankscope.slicing import CallKey, Sample

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


class Tiny(nn.Module):
    """Five factors of 1e-170 behind a layer, by each way of writing them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False).double()
        self.layer.weight.data = orthogonal(1, 1.0, torch.float64)[0]
        self.way, self.gain = way, nn.Parameter(torch.full((4,), 1e-170, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        if self.way == "power":
            return (y * 1e-60) ** 8
        if self.way == "folded":
            return nn.functional.linear(y, torch.diag(self.gain) @ torch.diag(self.gain))
        for _ in range(5):
            y = y * self.gain if self.way == "product" else y / (1 / self.gain)
        return y


@pytest.mark.parametrize("method", ["auto", rs.Lanczos(probes=2, steps=2)])
@pytest.mark.parametrize("way", ["product", "quotient", "power", "folded"])
def test_a_product_that_is_zero_at_every_scale(way: str, method: Any) -> None:
    """No cut point before it shows that anything was lost; rank 0 with bounds [0, 0] was certified."""
    x = torch.ones(1, 4, dtype=torch.float64)
    profile = rs.jacobian_rank(Tiny(way), x, cut_points=["output"], columns="all", method=method, progress=False)
    (estimate,) = profile["output"].estimates(profile.tolerance)
    assert (estimate.lower, estimate.upper) == (0, 4)
    assert [f for f in profile.facts if f.kind is FactKind.UNDERFLOW]


def test_lanczos_on_a_chain_whose_products_vanish() -> None:
    factors = orthogonal(5, 1e-170, torch.float64)
    profile = rs.jacobian_rank(
        chain(factors),
        torch.zeros(1, 4).double(),
        cut_points=["4"],
        columns="all",
        method=rs.Lanczos(probes=2, steps=2),
        progress=False,
    )
    assert [(e.lower, e.upper) for e in profile["4"].estimates(profile.tolerance)] == [(0, 4)]


class TwoWays(nn.Module):
    """The identity, of which all but the first entry goes through 1e-840 and back."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for factor in (1e-30, 1e30):
            for _ in range(28):
                y = y * factor
        return torch.cat([x[:, :1], y[:, 1:]], 1)


def test_a_part_that_is_lost_and_made_great_again() -> None:
    """Rank 1 was certified: the products are not zero, and no scale of them shows what is missing."""
    profile = rs.jacobian_rank(TwoWays(), torch.ones(1, 4), cut_points=["output"], dtype="float64", progress=False)
    (estimate,) = profile["output"].estimates(profile.tolerance)
    assert not estimate.certified or estimate.upper == 4


@pytest.mark.parametrize("call", [rs.jacobian_rank, rs.linear_map])
def test_a_sample_below_the_range_of_the_dtype(call: Any) -> None:
    """A network without weights is measured in float32, where 1e-200 is zero: rank 0 with bounds [0, 0] for x²."""

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    x = torch.tensor([[2e-200, 1e-200]], dtype=torch.float64)
    with pytest.raises(rs.DataError, match=r"sample 0 is 2.0e-200, which float32 cannot hold; give dtype=.float64"):
        call(Square().eval(), x, cut_points=["output"])
    found = rs.jacobian_rank(Square().eval(), x, cut_points=["output"], dtype="float64", progress=False)
    assert found.function_rank == (2,)
    beside = torch.tensor([[1.0, 1e-200]], dtype=torch.float64)
    rs.jacobian_rank(Square().eval(), beside, cut_points=["output"], progress=False)


class Normed(nn.Module):
    """Root mean square one: the derivative has rank 3 of 4, as the length of what comes in counts for nothing."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False).double()
        self.layer.weight.data = orthogonal(1, scale, torch.float64)[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-5)


@pytest.mark.parametrize(("scale", "sure"), [(1e30, True), (1e90, True), (1e130, False)])
def test_a_factor_below_the_range_beside_a_great_tangent(scale: float, sure: bool) -> None:
    """The cube of 1e-130 is zero and its tangent 1e260: rank 4 with bounds [4, 4] was certified."""
    x = torch.tensor([[1.0, 2.0, 3.0, -1.0]], dtype=torch.float64)
    profile = rs.jacobian_rank(Normed(scale), x, cut_points=["output"], progress=False)
    (estimate,) = profile["output"].estimates(profile.tolerance)
    assert estimate.lower <= 3 <= estimate.upper
    assert (estimate.certified and estimate.lower == estimate.upper) is sure


@pytest.mark.parametrize("scale", [1e-290, 1e-100, 1e100, 1e290])
def test_numbers_near_the_end_of_the_range_that_lose_nothing(scale: float) -> None:
    """The mask of attention and a softmax's tails are near it too."""
    (weight,) = orthogonal(1, scale, torch.float64)

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x @ weight.T) / scale
            mask = torch.full((4, 4), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
            tails = torch.softmax(mask + torch.diag(torch.full((4,), 600.0, dtype=torch.float64)), -1)
            return y @ tails.T * scale

    x = torch.ones(1, 4).double()
    profile = rs.jacobian_rank(Masked(), x, cut_points=["output"], dtype="float64", progress=False)
    (estimate,) = profile["output"].estimates(profile.tolerance)
    assert (estimate.certified, estimate.lower, estimate.upper) == (True, 4, 4)
    assert not [f for f in profile.facts if f.kind is FactKind.UNDERFLOW]


@pytest.mark.parametrize(("factors", "lost"), [([1e-200], False), ([1e200, 1e-200], False), ([1e-200, 1e-115], True)])
def test_the_bound_holds_what_is_lost(factors: list[float], lost: bool) -> None:
    """Oracle: the exact product of the factors in fractions."""
    model = chain([f * torch.eye(1, dtype=torch.float64) for f in factors])
    x = torch.zeros(1, 1, dtype=torch.float64)
    runner = Runner(model, [CallKey(str(len(factors) - 1))], torch.device("cpu"), torch.float64)
    own = LinearMap.of(runner, Sample(x, "image"))
    g = torch.tensor([[1 / 3]], dtype=torch.float64)
    bound = float(lost_below(own, g)[0, 0])
    exact = Fraction(1 / 3)
    for factor in factors:
        exact *= Fraction(factor)
    found = Fraction(float(own.push(g)[0]))
    if lost:
        assert abs(exact - found) <= Fraction(bound) <= Fraction(1e-310)
    else:
        assert Fraction(bound) <= abs(exact) * Fraction(2.0**-60)
