"""A model that is random in evaluation mode is named wherever it is only run forward, and one that is not is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind


class Draws(nn.Module):
    def __init__(self, draw: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.draw = nn.Linear(6, 6), nn.Linear(6, 3), draw
        self.generator, self.calls = torch.Generator().manual_seed(0), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.draw(self, self.first(x)))


RANDOM: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": lambda _, h: F.dropout(h, 0.5),
    "noise": lambda _, h: h + torch.randn_like(h),
    "numpy": lambda _, h: h * float(np.random.rand()),
    "python": lambda _, h: h * random.random(),
}
HELD: dict[str, Callable[[Any, Tensor], Tensor]] = {  # every call starts from the same place of it
    "its own generator": lambda m, h: h * torch.rand(6, generator=m.generator),
}
STEADY: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout that is off": lambda m, h: F.dropout(h, 0.5, m.training),
    "draws that nothing uses": lambda _, h: h + 0 * torch.randn_like(h),
    "the same draw each time": lambda _, h: h + torch.randn(6, generator=torch.Generator().manual_seed(1)),
}
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(2))
ROOMS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "feature_rank": lambda m, _: rs.feature_rank(m, X),
    "local_feature_rank": lambda m, _: rs.local_feature_rank(m, X[:1], samples=20),
    "collect": lambda m, out: rs.collect(m, TensorDataset(X, torch.arange(12) % 3), out=out, progress=False),
}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", [*RANDOM, *HELD, *STEADY])
def test_k10_randomness_is_named_with_its_layer(room: str, name: str, tmp_path: Path) -> None:
    model = Draws({**RANDOM, **HELD, **STEADY}[name]).eval()
    state = torch.get_rng_state(), random.getstate()
    result = ROOMS[room](model, tmp_path)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    said = of_kind(result.facts, FactKind.RANDOM_MODEL)
    assert [(f.caution, f["where"] in ("last", "output", "the input of last")) for f in said] == [(True, True)] * (
        name in RANDOM
    )
    assert len(of_kind(result.facts, FactKind.DRAWS_UNUSED)) == (name == "draws that nothing uses")
    assert ("random in evaluation mode" in str(result)) == (name in RANDOM)
    assert [f["where"] for f in of_kind(result.facts, FactKind.KEEPS_STATE)] == [("generator",)] * (name in HELD)


def test_k10_a_layer_whose_randomness_does_not_reach_the_output_is_named() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.noisy, self.last = nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            self.noisy(h + torch.randn_like(h))
            return self.last(h)

    profile = rs.feature_rank(Beside().eval(), X, cut_points=["first", "noisy"])
    (said,) = of_kind(profile.facts, FactKind.RANDOM_MODEL)
    assert said["where"] == "noisy"
    assert not of_kind(rs.feature_rank(Beside().eval(), X, cut_points=["first"]).facts, FactKind.RANDOM_MODEL)


def test_k10_exponents_of_a_random_model_say_so() -> None:
    net = nn.Sequential(nn.Linear(6, 6), Draws(RANDOM["dropout"]).first, nn.Linear(6, 6))
    assert not of_kind(rs.chain_exponents(net.eval(), X[:1], progress=False).facts, FactKind.RANDOM_MODEL)

    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5))

    net = nn.Sequential(nn.Linear(6, 6), Noisy(6, 6), nn.Linear(6, 6)).eval()
    assert of_kind(rs.chain_exponents(net, X[:1], progress=False).facts, FactKind.RANDOM_MODEL)
