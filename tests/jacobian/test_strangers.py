"""What strangers' networks do that broke a method once: each case is the smallest network that showed it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.errors import ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope.jacobian import JacobianProfile
from rankscope.linear.reverse import reverse_mode


def measured(net: nn.Module, x: Tensor) -> JacobianProfile:
    """The profile of the whole network's output, held against reverse-mode rows in float64."""
    net = net.eval()
    profile = rs.jacobian_rank(net, x, columns="all", cut_points="last")
    with reverse_mode():
        exact = torch.autograd.functional.jacobian(net.double(), x.double())
    net.float()
    expected = rs.Spectrum.of(exact.reshape(-1, x.numel()).detach())
    found = profile.layers[-1].spectra[0]
    assert found is not None
    np.testing.assert_allclose(found.singular_values, expected.singular_values, rtol=1e-4, atol=1e-5)
    assert profile.adjoint_error is not None
    assert profile.adjoint_error < 1e-5
    return profile


class Net(nn.Module):
    """A linear map, a stranger's function, and a named last layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, width)
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))

    def between(self, x: Tensor) -> Tensor:
        return x


class ReadsConstant(Net):
    def between(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[-1]) >= 0
        return torch.tanh(x) if bool(mask.all()) else x


class ReadsInput(Net):
    def between(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if x.sum().item() > 0 else x * 2


class Overwrites(Net):
    def between(self, x: Tensor) -> Tensor:
        held = x.new_zeros(x.shape)
        held[:, :4].copy_(torch.sin(x[:, :4]))
        return held + x * 0.5


class Expands(Net):
    def between(self, x: Tensor) -> Tensor:
        return torch.exp(x.mean(-1, keepdim=True)).expand_as(x).sigmoid() * x


class Groups(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)
        nn.init.normal_(self.norm.weight)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x.view(-1, 4, 2)).flatten(1)


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(2, 2, batch_first=True, bidirectional=True)

    def between(self, x: Tensor) -> Tensor:
        return self.cell(x.view(-1, 4, 2))[0].flatten(1)[:, :8]


class TransposedNorm(Net):
    def __init__(self) -> None:
        super().__init__(64)
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.1, 4.0)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x.view(-1, 4, 4, 4)).flatten(2).transpose(1, 2).contiguous().flatten(1)


class Masked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor(float("inf")))

    def between(self, x: Tensor) -> Tensor:
        return torch.clamp(x, max=self.bound)


@pytest.mark.parametrize(
    "kind", [ReadsConstant, Overwrites, Expands, Groups, Recurrent, TransposedNorm, Masked], ids=lambda k: k.__name__
)
def test_linearised_and_right(kind: type[Net]) -> None:
    profile = measured(kind(), torch.randn(1, 6, generator=torch.Generator().manual_seed(1)))
    assert profile.method.kind is FactKind.LINEARISED, profile.failed_methods


def test_a_path_that_depends_on_the_input_is_not_fixed_in_a_trace() -> None:
    profile = measured(ReadsInput(), torch.randn(1, 6, generator=torch.Generator().manual_seed(1)))
    assert profile.method == Fact(FactKind.PUSHED, {"name": "vmap(jvp)"})
    assert "depends on the input" in profile.failed_methods[0]["reason"]


def test_a_module_in_two_places_is_left_as_it_was() -> None:
    class Shared(Net):
        def __init__(self) -> None:
            super().__init__()
            inner = nn.Linear(8, 8)
            self.a, self.b = nn.Sequential(inner, nn.Tanh()), nn.Sequential(inner)

        def between(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    net = Shared()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rs.jacobian_rank(net.eval(), torch.randn(1, 6), columns="all")
    for name, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_infinite_statistics_and_nan_buffers_are_refused() -> None:
    net = TransposedNorm().eval()
    assert net.norm.running_var is not None
    net.norm.running_var[0] = float("inf")
    with pytest.raises(ModelError, match="running_var"):
        rs.jacobian_rank(net, torch.randn(1, 6))
    masked = Masked().eval()
    masked.bound.fill_(float("nan"))
    with pytest.raises(ModelError, match="bound"):
        rs.jacobian_rank(masked, torch.randn(1, 6))
