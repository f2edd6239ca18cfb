"""A model whose calls leave something that changes the next call: said everywhere, and every call starts afresh."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind


class Remembers(nn.Module):
    """What ``returned`` makes of the layer's output and of what the last call left."""

    def __init__(self, returned: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.returned, self.last = nn.Linear(6, 5), returned, None

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        before, self.last = self.last, y.detach().mean()
        return self.returned(y, torch.zeros(()) if before is None else before)


class Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table, self.seen = nn.Linear(6, 5), None, []

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.ones(5)
        self.seen.append(len(x))
        return self.linear(x) * self.table


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(6, 5), 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        y = self.linear(x)
        return y, y + torch.randn(())


def _measured(model: nn.Module, folder: Path) -> dict[str, tuple[Fact, ...]]:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    found: dict[str, tuple[Fact, ...]] = {
        "jacobian_rank": rs.jacobian_rank(model, x[:3], cut_points=["linear"], progress=False).facts,
        "feature_rank": rs.feature_rank(model, x, cut_points=["linear"]).facts,
        "local_feature_rank": rs.local_feature_rank(model, x[:1], cut_points=["linear"], samples=20).facts,
    }
    with torch.no_grad():
        returned = copy.deepcopy(model)(x)
    if isinstance(returned, Tensor):  # a collection needs logits
        data = (x, torch.arange(20) % 5)
        found["collect"] = rs.collect(model, data, out=folder, head="linear", progress=False, shard_size=5).facts
    return found


@pytest.mark.parametrize(
    "returned",
    [
        lambda y, last: y + last,  # the layer that is measured returns the same each time
        lambda y, last: {"logits": y, "steps": (last != 0).long()},  # an integer beside it
        lambda y, last: (y, [None, y * last]),
        lambda y, last: y if float(last) == 0 else (y, y),  # another path
    ],
)
def test_a_state_that_changes_any_returned_tensor_is_named(returned: Any, tmp_path: Path) -> None:
    model = Remembers(returned).eval()
    for room, facts in _measured(model, tmp_path).items():
        said = [fact for fact in facts if fact.kind is FactKind.KEEPS_STATE]
        assert [fact["where"] for fact in said] == [("last",)], room


def test_the_collected_rows_come_from_the_state_that_the_model_was_given_with(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = Remembers(lambda y, last: y + last).eval()
    x = torch.randn(20, 6)
    truth = x.double() @ model.linear.weight.detach().double().T + model.linear.bias.detach().double()
    data = (x, torch.arange(20) % 5)
    options: Any = {"head": "linear", "progress": False, "shard_size": 4, "batch_size": 4}
    found = rs.collect(model, data, out=tmp_path, **options)
    # six products of float32 numbers below 4: rounding stays below 6·4·2⁻²⁴
    torch.testing.assert_close(found.logits.double(), truth, rtol=0, atol=6 * 4 * 2.0**-24)
    assert model.last is None
    again = rs.collect(model, data, out=tmp_path, **options)
    assert {FactKind.KEEPS_STATE, FactKind.READ_BACK} <= {fact.kind for fact in again.facts}
    values = rs.feature_rank(model, x, cut_points=["output"], batch_size=3)["output"].covariance.singular_values
    expected = torch.linalg.eigvalsh(torch.cov(truth.T)).flip(0)
    # rounding moves an entry by 4e-6 at most, so a variance by 2·√5·3·4e-6
    torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=6e-5)


@pytest.mark.parametrize("build", [Caches, Draws])
def test_caches_counters_and_random_numbers_are_no_such_state(build: Any, tmp_path: Path) -> None:
    for room, facts in _measured(build().eval(), tmp_path).items():
        assert FactKind.KEEPS_STATE not in {fact.kind for fact in facts}, room


class Chained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(x)
        before, self.last = self.last, y.detach().mean()
        return y if before is None else y * before


def test_chain_exponents_name_it_too() -> None:
    found = rs.chain_exponents(Chained().double().eval(), torch.randn(2, 4), cut_points="blocks.*", progress=False)
    said = [fact for fact in found.facts if fact.kind is FactKind.KEEPS_STATE]
    assert [fact["where"] for fact in said] == [("last",)]


class Crops(nn.Module):
    """Keeps four of the features from a place that ``draw`` chooses with a generator of the model's own."""

    def __init__(self, generator: Any, draw: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        self.own, self.draw = [generator], draw

    def forward(self, x: Tensor) -> Tensor:
        place = int(self.draw(self.own[0]))
        return self.last(nn.functional.pad(torch.tanh(self.first(x))[:, place : place + 4], (0, 4)))


OWN_GENERATORS: dict[str, Any] = {
    "torch": (
        lambda: torch.Generator().manual_seed(3),
        lambda g: torch.randint(0, 4, (), generator=g),
        lambda g: g.get_state().tolist(),
    ),
    "python": (lambda: random.Random(3), lambda g: g.randrange(4), lambda g: g.getstate()),
    "numpy": (lambda: np.random.default_rng(3), lambda g: g.integers(4), lambda g: str(g.bit_generator.state)),
    "numpy, Mersenne": (
        lambda: np.random.Generator(np.random.MT19937(3)),
        lambda g: g.integers(4),
        lambda g: [*g.bit_generator.state["state"]["key"].tolist(), g.bit_generator.state["state"]["pos"]],
    ),
    "numpy, old": (lambda: np.random.RandomState(3), lambda g: g.randint(4), lambda g: str(g.get_state())),
}


@pytest.mark.parametrize("kind", OWN_GENERATORS)
def test_every_call_draws_the_same_from_a_generator_that_the_model_holds(kind: str, tmp_path: Path) -> None:
    make, draw, place = OWN_GENERATORS[kind]
    model, x = Crops(make(), draw).eval(), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    before = place(model.own[0])
    profile = rs.jacobian_rank(model, x, cut_points=["output"], columns="all", progress=False)
    features = rs.feature_rank(model, torch.randn(20, 6, generator=torch.Generator().manual_seed(2)))
    rs.linear_map(model, x[:1]).push(torch.ones(1, 6))
    rs.local_feature_rank(model, x[:1], samples=8)
    data = torch.utils.data.TensorDataset(torch.randn(8, 6), torch.arange(8) % 2)
    collected = rs.collect(model, data, out=tmp_path, progress=False)
    assert place(model.own[0]) == before  # it leaves as it came
    for facts in (profile.facts, features.facts, collected.facts):
        assert [fact.kind for fact in facts] == [FactKind.KEEPS_STATE]
    wide = copy.deepcopy(model).double()
    for image, spectrum in zip(x, profile["output"].spectra, strict=True):
        wide.own = [make()]  # the same draw for every sample, as for a first call
        leaf = image[None].double().requires_grad_()
        rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in wide(leaf).flatten()]
        assert spectrum is not None
        truth = torch.linalg.svdvals(torch.stack(rows))
        # the certificate's own bound; 1e-7 for the Gram matrix's square root
        assert abs(spectrum.sigma_max - float(truth[0])) <= spectrum.error_bound + 1e-7 * float(truth[0])
        assert spectrum.rank(profile.tolerance).value == 4  # of eight features four are kept


def test_a_source_of_random_numbers_without_a_state_is_no_obstacle() -> None:
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    held = Crops(random.SystemRandom(), lambda _: 2).eval()  # it draws nothing
    profile = rs.jacobian_rank(held, x, cut_points=["output"], columns="all", progress=False)
    ranks = [None if s is None else s.rank(profile.tolerance).value for s in profile["output"].spectra]
    assert ranks == [4, 4]  # of eight features four are kept
    assert profile.facts == ()
    drawing = Crops(random.SystemRandom(), lambda source: source.randrange(4)).eval()
    facts = rs.feature_rank(drawing, torch.randn(200, 6, generator=torch.Generator().manual_seed(2))).facts
    assert FactKind.KEEPS_STATE not in [fact.kind for fact in facts]
