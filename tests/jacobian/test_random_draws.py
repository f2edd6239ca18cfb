"""A model that draws from generators it does not hold: two equal draws do not make it one function."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.slicing.global_generators import GlobalGenerators

OF_THE_FILE = torch.Generator().manual_seed(0)
NUMPY_OF_THE_FILE = np.random.default_rng(0)


class Crop(nn.Module):
    """Takes four of eight features, from the place that ``draw`` gives."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.draw = nn.Linear(8, 8), nn.Linear(8, 6), draw

    def forward(self, x: Tensor) -> Tensor:
        at = int(self.draw())
        return self.b(F.pad(self.a(x)[:, at : at + 4], (0, 4)))


DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.randint(0, 4, (1,)),
    "a generator beside the code": lambda: torch.randint(0, 4, (1,), generator=OF_THE_FILE),
    "numpy beside the code": lambda: NUMPY_OF_THE_FILE.integers(4),
    "python": lambda: random.randrange(4),
    "numpy": lambda: np.random.randint(4),
}
SELDOM: dict[str, Callable[[], Any]] = {"one of five": lambda: torch.rand(()) < 0.2}
X = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*DRAWS, *SELDOM])
def test_k10_nothing_behind_a_draw_is_certified(name: str) -> None:
    profile = rs.jacobian_rank(
        Crop({**DRAWS, **SELDOM}[name]).eval(), X, columns=rs.Sketch(5), cut_points="all", progress=False
    )
    (said,) = of_kind(profile.facts, FactKind.RANDOM_MODEL)
    assert (said.caution, said["where"]) == (True, "b")  # a comes before the draw
    certified = {layer.name: [rank.certified for rank in layer.estimates("paper")] for layer in profile.layers}
    assert not any(certified["b"])
    assert all(certified["a"])


@pytest.mark.parametrize("name", DRAWS)
def test_generators_that_the_model_does_not_hold_are_watched(name: str) -> None:
    net = Crop(DRAWS[name])
    watched = GlobalGenerators(net, torch.device("cpu"))
    net.a(X)
    assert not watched.moved
    net(X)
    assert watched.moved


def test_k10_draws_that_change_nothing_are_said_and_measured() -> None:
    net = Crop(lambda: torch.rand(()) > 2).eval()
    profile = rs.jacobian_rank(net, X, columns=rs.Sketch(5), cut_points="all", progress=False)
    for result in (profile, rs.feature_rank(net, X.repeat(5, 1))):
        assert [f.caution for f in of_kind(result.facts, FactKind.DRAWS_UNUSED)] == [False]
        assert not of_kind(result.facts, FactKind.RANDOM_MODEL)
    assert all(rank.certified for layer in profile.layers for rank in layer.estimates("paper"))
