"""Where forward and reverse mode disagree nothing from there on is certified: the probes are of one mode too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind


class _Half(torch.autograd.Function):
    """The identity, whose backward formula says one half."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / 2

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Half.apply(x)


class Rounded(nn.Module):
    """Straight through: whole numbers, which the next layer may have its kink at."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.round(x) - x).detach()


def certified(profile: rs.JacobianProfile) -> list[bool]:
    return [all(s.rank().certified for s in layer.spectra if s is not None) for layer in profile.layers]


@pytest.mark.parametrize("images", [1, 4])
def test_a_wrong_formula_ends_the_certificate(images: int) -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), Half(), nn.Linear(5, 5)).eval()
    profile = rs.jacobian_rank(model, torch.randn(images, 5), progress=False)
    assert FactKind.REVERSE_DISAGREES in {fact.kind for fact in profile.facts}
    assert certified(profile) == [True, True, False, False]


def test_inputs_exactly_at_a_kink() -> None:
    """PReLU at zero: torch's two modes take different sides, and neither is the derivative."""
    model = nn.Sequential(Rounded(), nn.PReLU(init=0.25), nn.Linear(6, 6)).eval()
    x = torch.tensor([[0.2, -0.3, 1.4, -2.2, 0.1, 3.0]])
    profile = rs.jacobian_rank(model, x, progress=False)
    if FactKind.REVERSE_DISAGREES in {fact.kind for fact in profile.facts}:
        assert certified(profile)[1:] == [False, False]
    else:  # a torch whose modes agree at a tie
        assert all(certified(profile))


@pytest.mark.parametrize("certain", [True, False], ids=["swept together", "each alone"])
def test_a_later_image_at_a_kink(certain: bool) -> None:
    """Only that image loses its certificate: each one's two modes are compared."""
    model = nn.Sequential(nn.Identity(), nn.PReLU(init=0.25), nn.Linear(6, 6)).eval()
    if not certain:  # a branch on the values of each image alone

        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 2 if len(x) > 1 else x

        model = nn.Sequential(Branching(), *list(model)[1:]).eval()
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    x[3, 2] = x[3, 4] = 0.0
    profile = rs.jacobian_rank(model, x, progress=False)
    found = [[s.rank().certified for s in layer.spectra if s is not None] for layer in profile.layers]
    leaf = torch.zeros((), requires_grad=True)
    reverse = float(torch.autograd.grad(nn.functional.prelu(leaf[None], torch.tensor([0.25])), leaf)[0])
    forward = float(torch.func.jvp(model[1], (torch.zeros(1),), (torch.ones(1),))[1].detach())
    facts = {fact.kind for fact in profile.facts}
    if reverse != forward:
        assert found == [[True] * 5, [True] * 3 + [False, True], [True] * 3 + [False, True]]
        assert FactKind.SOME_DISAGREE in facts
        assert "exactly at a kink" in str(profile)
    else:  # a torch whose modes agree at a tie
        assert found == [[True] * 5] * 3
        assert FactKind.SOME_DISAGREE not in facts
