"""Models that raised, were refused or alarmed without a cause; each against float64 reverse-mode rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind

EPS32 = 2.0**-23


class Between(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 6), nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class Fourier(nn.Module):
    """Row K12: weights in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=6))


class Sparse(nn.Module):
    def __init__(self, layout: str) -> None:
        super().__init__()
        matrix = torch.randn(6, 6).relu()
        self.register_buffer("matrix", matrix.to_sparse_csr() if layout == "csr" else matrix.to_sparse())
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.matrix @ x.T).T)


def upper(h: Tensor) -> Tensor:
    return torch.clamp(h, torch.full_like(h, -0.1).detach(), torch.full_like(h, 0.4).detach())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "K1 prelu": lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU(6), nn.Linear(6, 6)),
    "K1 clamp by tensors": lambda: Between(upper),
    "K1 clamp to one": lambda: Between(lambda h: torch.clamp(h, 0, 1) + h),
    "K1 in place": lambda: Between(lambda h: nn.functional.hardtanh(h + 0, -1, 1, True)),
    "K12 complex": Fourier,
    "K3 coo": lambda: Sparse("coo"),
    "K3 csr": lambda: Sparse("csr"),
}


def widened(model: nn.Module) -> nn.Module:
    """float64, and complex weights too, which ``Module.double`` leaves."""
    double = copy.deepcopy(model).double()
    for parameter in double.parameters():
        if parameter.is_complex():
            parameter.data = parameter.data.to(torch.complex128)
    return double


def sigma(model: nn.Module, x: Tensor) -> Tensor:
    if isinstance(model, Sparse):  # torch copies no compressed matrix; the product is known
        return torch.linalg.svdvals((model.last.weight.detach() @ model.matrix.to_dense()).double())
    leaf = x[None].double().requires_grad_()
    out = widened(model)(leaf).reshape(-1)
    rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0].reshape(-1) for v in out]
    return torch.linalg.svdvals(torch.stack(rows))


@pytest.mark.parametrize("name", MODELS)
def test_k1_k3_k12_are_measured_and_certified(name: str) -> None:
    torch.manual_seed(1)
    model, x = MODELS[name]().eval(), torch.randn(3, 6)
    layer = rs.jacobian_rank(model, x, cut_points="all", progress=False).layers[-1]
    for image, spectrum in zip(x, layer.spectra, strict=True):
        assert spectrum is not None
        estimate, truth = spectrum.rank("paper"), sigma(model, image)
        assert estimate.certified
        exact = int((truth >= EPS32 * 6 * truth[0]).sum())
        assert estimate.lower <= exact <= estimate.upper
        # the certificate's own bound; 1e-7 for the Gram matrix's square root
        assert abs(spectrum.sigma_max - float(truth[0])) <= spectrum.error_bound + 1e-7 * float(truth[0])


def test_k3_exported_programs_are_measured() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    x = torch.randn(1, 6)
    program = torch.export.export(net, (x,)).module()
    assert rs.jacobian_rank(program, x, progress=False).function_rank == (4,)


def test_k8_where_behind_a_root_keeps_its_rank() -> None:
    """Reverse mode gives NaN at a masked root; forward mode does not, and the check says that it was not made."""
    torch.manual_seed(0)
    model, x = Between(lambda h: torch.where(h > 0, torch.sqrt(h), 0)).eval(), torch.randn(3, 6)
    profile = rs.jacobian_rank(model, x, cut_points=["last"], progress=False)
    with torch.no_grad():
        expected = [int((model.first(image) > 0).sum()) for image in x]
    assert [e.value for e in profile["last"].estimates(profile.tolerance)] == expected
    assert [f.kind for f in profile.facts] == [FactKind.REVERSE_UNCHECKED]


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 1e-170), (torch.float64, 1e160), (torch.float32, 1e-40), (torch.float32, 1e38)],
)
@pytest.mark.parametrize("images", [1, 3])
def test_j6_scale_decides_no_rank(dtype: torch.dtype, scale: float, images: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False).to(dtype)
    layer.weight.data *= scale
    expected = torch.linalg.svdvals(layer.weight.detach().double() / scale).numpy()
    profile = rs.jacobian_rank(nn.Sequential(layer).eval(), 0.1 * torch.randn(images, 4, dtype=dtype), progress=False)
    for spectrum in profile.layers[-1].spectra:
        assert spectrum is not None
        estimate = spectrum.rank("paper")
        assert (estimate.lower, estimate.value, estimate.upper) == (4, 4, 4)
        assert spectrum.singular_values / scale == pytest.approx(expected, rel=1e-6)
        assert (spectrum.effective_rank, spectrum.srank()) == (
            pytest.approx(rs.Spectrum.of(layer.weight.detach().double() / scale).effective_rank),
            rs.Spectrum.of(layer.weight.detach().double() / scale).srank(),
        )
    assert not [f for f in profile.facts if f.caution]


class Averages(nn.Module):
    """Row K10: a running average of what came before, in a buffer or an attribute."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.last = nn.Linear(6, 6)
        if buffer:
            self.register_buffer("seen", torch.zeros(6))
        else:
            self.seen = torch.zeros(6)

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(x + self.seen)
        self.seen = self.seen + x.detach().mean(0)
        return out.tanh()


@pytest.mark.parametrize("buffer", [True, False])
def test_k10_state_is_told_from_randomness(buffer: bool) -> None:
    torch.manual_seed(3)
    profile = rs.jacobian_rank(Averages(buffer).eval(), torch.randn(2, 6), cut_points="all", progress=False)
    assert [(f.kind, f["where"]) for f in profile.facts] == [(FactKind.KEEPS_STATE, ("seen",))]


class Caches(nn.Linear):
    table: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.dtype != x.dtype:
            self.table = torch.full((6,), 2.0, dtype=x.dtype)
        return super().forward(x * self.table)


def test_k10_a_cache_is_no_state() -> None:
    profile = rs.jacobian_rank(nn.Sequential(Caches(6, 6)).eval(), torch.randn(2, 6), progress=False)
    assert profile.facts == ()


def test_k8_weights_that_are_no_normal_numbers() -> None:
    """Weights of 1e-42 have ten bits; their rank is that of the stored numbers, and the check was not made."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.data *= 1e-42 / float(layer.weight.data.abs().max())
    truth = torch.linalg.svdvals(layer.weight.detach().double() * 2.0**140)
    exact = int((truth >= EPS32 * 4 * truth[0]).sum())
    profile = rs.jacobian_rank(nn.Sequential(layer).eval(), torch.randn(2, 4), progress=False)
    for spectrum in profile.layers[-1].spectra:
        assert spectrum is not None
        estimate = spectrum.rank("paper")
        assert estimate.lower <= exact <= estimate.upper
        assert estimate.value == exact
    kinds = {f.kind for f in profile.facts}
    assert {FactKind.REVERSE_UNCHECKED, FactKind.UNDERFLOW} <= kinds
    assert not [f for f in profile.facts if f.caution]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("scales", "dtype", "kind", "where"),
    [
        ([1e-30, 1e-30], torch.float32, FactKind.UNDERFLOW, "1"),  # zero from there on
        ([1e-30, 1e-30, 1e30], torch.float32, FactKind.UNDERFLOW, "1"),
        ([1e-36], torch.float32, FactKind.UNDERFLOW, "0"),  # less than 24 bits are left of small entries
        ([1e30, 1e30], torch.float32, FactKind.OVERFLOW, "1"),
        ([1e-200, 1e-105], torch.float64, FactKind.UNDERFLOW, "1"),
        ([1e-20, 1e20], torch.float32, None, ""),
        ([1e-200], torch.float64, None, ""),
    ],
)
def test_products_out_of_range_are_said(
    scales: list[float], dtype: torch.dtype, kind: FactKind | None, where: str, images: int
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, bias=False).to(dtype) for _ in scales]
    for layer, scale in zip(layers, scales, strict=True):
        layer.weight.data *= scale
    # an input that large numbers do not carry over the range by themselves
    x = torch.zeros(images, 4, dtype=dtype)
    profile = rs.jacobian_rank(nn.Sequential(*layers).eval(), x, cut_points="all", progress=False)
    said = [f for f in profile.facts if f.kind in (FactKind.UNDERFLOW, FactKind.OVERFLOW)]
    assert [(f.kind, f.values["where"]) for f in said] == ([] if kind is None else [(kind, where)])
    assert ("so small that" in str(profile) or "too large for" in str(profile)) == bool(said)


class Spectral(nn.Module):
    """A Fourier transform, which no processor has in half precision; and a table beside the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.table = torch.linspace(1, 2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.rfft(self.first(x) * self.table).abs()[..., :3].repeat(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operators_that_half_precision_lacks_are_measured(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = Spectral().to(dtype).eval()
    model.table = model.table.to(dtype)
    before = {name: (p, p.data_ptr(), p.dtype, p.detach().clone()) for name, p in model.named_parameters()}
    table = model.table
    x = torch.randn(2, 6)
    profile = rs.jacobian_rank(model, x, cut_points=["last"], progress=False)
    for name, p in model.named_parameters():
        same, place, kind, values = before[name]
        assert p is same
        assert (p.data_ptr(), p.dtype) == (place, kind)
        assert torch.equal(p, values)
    assert model.table is table
    assert table.dtype == dtype
    wide = copy.deepcopy(model).double()
    wide.table = table.double()
    for image, spectrum in zip(x, profile["last"].spectra, strict=True):
        assert spectrum is not None
        truth = sigma(wide, image)
        exact = int((truth >= EPS32 * 6 * truth[0]).sum())
        assert spectrum.rank().lower <= exact <= spectrum.rank().upper
    assert FactKind.WEIGHTS_RAISED in {f.kind for f in profile.facts}


class Alternating(nn.Module):
    """Seed 32189: the state that a call leaves sends the next one past an expert."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.expert, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.expert(x) if float(self.seen) == 0 else x
        self.seen += 1
        return self.last(h)


@pytest.mark.parametrize("images", [1, 3])
def test_a_state_that_skips_a_cut_point_on_the_next_call(images: int) -> None:
    torch.manual_seed(4)
    model = Alternating().eval()
    profile = rs.jacobian_rank(model, torch.randn(images, 4), cut_points="all", progress=False)
    truth = torch.linalg.matrix_rank(model.last.weight.detach().double() @ model.expert.weight.detach().double())
    assert profile.function_rank[-1] == int(truth) == 4
    assert FactKind.KEEPS_STATE in {f.kind for f in profile.facts}
    assert float(model.seen) == 0
