"""Comparisons of many tensors as one, beside those one by one; and what a guard sees through them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.slicing import same, same_at_once, same_numbers
from rankscope.slicing.state import ModelState


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "on_a_gpu", lambda tensor: tensor.layout == torch.strided)
    monkeypatch.setattr(same, "_AT_ONCE", 200)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_is_the_same_at_once_is_the_same_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = 0
    for trial in range(200):
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for _ in range(12):
            a = torch.randn(int(torch.randint(0, 9, (), generator=generator)), 3, generator=generator)
            kind = int(torch.randint(0, 12 if trial % 2 else 3, (), generator=generator))
            a = a.double() if kind == 1 else a.t() if kind == 2 else a
            b: Tensor | None = a.clone()
            if kind == 4:
                b = None
            elif kind == 5:
                b = a.double()
            elif kind == 6 and a.numel():
                b = a.clone()
                b[-1, -1] = torch.nan
            elif kind == 7:
                b = a[:-1]
            elif kind == 8:
                a, b = a.to_sparse(), a.to_sparse()
            pairs.append((a, b))
        found = same_at_once(iter(pairs))
        assert len(found) == len(pairs)
        for known, (a, b) in zip(found, pairs, strict=True):
            assert not known or (b is not None and a.dtype == b.dtype and same_numbers(a, b))
        if trial % 2 == 0:
            assert all(found)
        seen += sum(found)
    assert seen > 1500
    assert same_at_once([(torch.ones(300), torch.ones(300)), (torch.ones(3), torch.ones(3))]) == [False, True]


def test_a_processor_compares_one_by_one() -> None:
    assert same_at_once([(torch.ones(3), torch.ones(3))]) == [False]


class Silent(nn.Module):
    """Writes into a weight past its version counter, and then gives the value back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data[0] *= 2
        return self.linear(x @ self.weight)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_guard_sees_what_was_written_past_the_counter() -> None:
    model = Silent()
    state = ModelState(model)
    with torch.no_grad():
        for _ in range(5):
            model(torch.ones(1, 4))
            state.restore()
            assert torch.equal(model.weight, torch.eye(4))
    assert state.changed == {"weight"}


@pytest.mark.usefixtures("as_on_a_gpu")
def test_copies_that_are_written_to_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = rs.jacobian_rank(Silent().eval(), torch.randn(2, 4), progress=False)
    plain = FactKind.KEEPS_STATE in {fact.kind for fact in profile.facts}
    monkeypatch.undo()
    again = rs.jacobian_rank(Silent().eval(), torch.randn(2, 4), progress=False)
    assert plain == (FactKind.KEEPS_STATE in {fact.kind for fact in again.facts})
    assert profile.function_rank == again.function_rank
