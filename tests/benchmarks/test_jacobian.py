"""``torch.func.linearize`` as a contender: its columns are the network's, and what it cannot record is named."""

from __future__ import annotations

import jacobian
import pytest
import torch
from torch import Tensor, nn

from rankscope.slicing import Patch


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobian, "SHAPE", (3, 8, 8))


def _net(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), last).eval()


def test_it_is_timed_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, device = _net(nn.Tanh()), torch.randn(1, 3, 8, 8), torch.device("cpu")
    pushed: list[Tensor] = []
    plain = jacobian.vmap

    def seen(function: object) -> object:
        def run(tangents: Tensor) -> tuple[Tensor, ...]:
            out: tuple[Tensor, ...] = plain(function)(tangents)
            pushed.append(out[-1])
            return out

        return run

    monkeypatch.setattr(jacobian, "vmap", seen)
    found = jacobian.linearized(jacobian.runner(model, ["1", "4"]), x, Patch(2), device, 6)
    assert found["how"] == "2 chunks of 6 timed, extrapolated"
    assert found["sweep"] > 0
    assert found["once"] > 0
    place = Patch(2).coordinates((3, 8, 8))
    rows = torch.autograd.functional.jacobian(model, x).reshape(5, -1)[:, place]
    columns = torch.cat(pushed[1:]).T  # 12 columns in two chunks; the first one warms up
    assert torch.allclose(columns, rows, atol=1e-6)  # sums of some 200 float32 terms near 0.1


def test_a_network_that_cannot_be_recorded_is_a_row_that_says_so() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) > 0 else x * 3

    run, device = jacobian.runner(_net(Branch()), ["4"]), torch.device("cpu")
    found = jacobian.linearized(run, torch.randn(1, 3, 8, 8), Patch(2), device, 6)
    assert found["how"].startswith("failed: ")
