"""Networks that differentiate in their own forward, as force fields do, and programs made of networks."""

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


class Field(nn.Module):
    """``way`` says how the forward comes to its gradient; gradients are on when a user calls it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.energy, self.tail = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(6, 4)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "force":
            x = x if x.requires_grad else x.requires_grad_()
            return self.tail(torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0])
        z = x.detach().clone().requires_grad_()
        if self.way == "guide":
            return self.tail(x) + torch.autograd.grad(self.energy(z).sum(), z)[0][:, :4]
        self.energy(z).sum().backward(inputs=[z])
        assert z.grad is not None
        return self.tail(x) * z.grad[:, :4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["force", "guide", "backward"])
def test_k5_a_gradient_inside_the_forward_is_measured(way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model, x = Field(way).to(dtype).eval(), torch.randn(2, 6, dtype=dtype)
    profile = rs.jacobian_rank(model, x, cut_points=["output"], columns="all", progress=False)
    wide = copy.deepcopy(model).double()
    for image, spectrum in zip(x, profile["output"].spectra, strict=True):
        assert spectrum is not None
        leaf = image[None].double().requires_grad_()
        rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in wide(leaf).flatten()]
        truth = torch.linalg.svdvals(torch.stack(rows))
        estimate = spectrum.rank(profile.tolerance)
        exact = int((truth >= EPS32 * 4 * truth[0]).sum())
        assert estimate.lower <= exact == estimate.value <= estimate.upper
        # the certificate's own bound; 1e-7 for the Gram matrix's square root
        assert abs(spectrum.sigma_max - float(truth[0])) <= spectrum.error_bound + 1e-7 * float(truth[0])
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())
    features = rs.feature_rank(model, torch.randn(20, 6, dtype=dtype), cut_points=["tail"])["tail"]
    assert features.samples == 20


def test_what_fails_with_gradients_too_is_the_models_own_error() -> None:
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such thing" if torch.is_grad_enabled() else "with gradients off")

    with pytest.raises(rs.ModelError, match="with gradients off"):
        rs.feature_rank(nn.Sequential(Fails(6, 4)).eval(), torch.randn(3, 6), cut_points=["0"])


def program(net: nn.Module, rows: int, **options: Any) -> nn.Module:
    return torch.export.export(net, (torch.randn(rows, 6),), **options).module()


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).eval()


def test_k3_a_program_for_another_number_of_samples_names_the_remedy() -> None:
    x = torch.randn(3, 6)
    words = "exported for calls of 3 samples, and rankscope calls it with 1; export it with a dynamic first dimension"
    for inputs in (x, x[:1]):
        with pytest.raises(rs.ModelError, match=words) as caught:
            rs.jacobian_rank(program(net(), 3), inputs, progress=False)
        assert "x[None]" not in str(caught.value)
    dynamic = program(net(), 3, dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=64)},))
    assert rs.jacobian_rank(dynamic, x, progress=False).function_rank == (4,)


ROOMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "jacobian_rank": lambda m, x: rs.jacobian_rank(m, x, progress=False),
    "feature_rank": lambda m, x: rs.feature_rank(m, x),
    "local_feature_rank": lambda m, x: rs.local_feature_rank(m, x[:1], samples=9),
    "chain_exponents": lambda m, x: rs.chain_exponents(m, x),
    "layers": lambda m, x: rs.layers(m, x),
    "linear_map": lambda m, x: rs.linear_map(m, x[:1]),
    "probe": lambda m, x: rs.probe(m, inputs=x),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("nested", [False, True])
def test_k3_a_frozen_script_is_named_with_its_remedy(room: str, nested: bool) -> None:
    """It has no mode of its own, so that asking for it raised."""
    frozen = torch.jit.freeze(torch.jit.script(net()))
    model = nn.Sequential(frozen, nn.Linear(4, 2)).eval() if nested else frozen
    what = "module '0'" if nested else "the model"
    with pytest.raises(rs.ModelError, match=f"{what} is a TorchScript module.*that it was scripted or traced from"):
        ROOMS[room](model, torch.randn(3, 6))


def test_layers_called_before_and_after_the_gradient_are_not_mixed_up() -> None:
    """The first call without gradients fails halfway, and the second one counts calls from the first again."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 6)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            h = torch.tanh(self.a(x if x.requires_grad else x.requires_grad_())) * self.calls
            energy = (torch.tanh(self.c(h)) ** 2).sum()
            return self.a(torch.autograd.grad(energy, h, create_graph=True)[0])

    torch.manual_seed(1)
    model, x = Twice().eval(), torch.randn(1, 6)
    profile = rs.jacobian_rank(model, x, cut_points="all", columns="all", progress=False)
    pushed = rs.linear_map(model, x, cut_points="a#2").push(torch.ones(1, 6))
    assert [fact.kind for fact in profile.facts] == [FactKind.KEEPS_STATE]
    assert model.calls == 0
    wide, leaf = copy.deepcopy(model).double(), x.double().requires_grad_()
    rows = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in wide(leaf).flatten()])
    spectrum = profile["a#2"].spectra[0]
    assert spectrum is not None
    # the certificate's own bound; 1e-7 for the Gram matrix's square root
    truth = float(torch.linalg.svdvals(rows)[0])
    assert abs(spectrum.sigma_max - truth) <= spectrum.error_bound + 1e-7 * truth
    # 50 roundings of float32 of the largest entry
    made = pushed[0] if isinstance(pushed, tuple) else pushed
    assert torch.allclose(
        made.flatten().double(), rows.sum(1), rtol=0, atol=50 * EPS32 * float(rows.abs().sum(1).max())
    )
