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
