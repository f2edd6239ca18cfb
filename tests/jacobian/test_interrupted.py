"""A measurement that is stopped while a sweep waits to be decided, as beside a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.jacobian import batch, collected
from rankscope.jacobian.finish import Finished, Finisher
from rankscope.jacobian.measurers import Measurers
from rankscope.jacobian.unsettled import Unsettled
from rankscope.linear.graphs import Replayed


class Branches(nn.Module):
    """No trace stands for it: it reads a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        return self.last(x) if float(x.sum()) < 1e9 else x


@pytest.mark.parametrize("error", [KeyboardInterrupt("now"), RuntimeError("now")])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_stops_a_decision_is_what_is_raised(
    error: BaseException, after: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finish, calls = Finisher._finish, []

    def stops(self: Finisher, *args: Any) -> list[Finished]:
        calls.append(1)
        if len(calls) == after + 1:
            raise error
        return finish(self, *args)

    monkeypatch.setattr(batch.BatchMeasurer, "batch_size", lambda *_: 1)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    model = Branches().eval()
    whole = rs.jacobian_rank(model, x, cut_points="all")
    assert all(spectrum.rank().certified for layer in whole.layers for spectrum in layer.spectra)
    with monkeypatch.context() as patched:
        patched.setattr(collected.Collected, "ahead", 3)
        patched.setattr(Finisher, "_finish", stops)
        with pytest.raises(type(error), match="now"):
            rs.jacobian_rank(model, x, cut_points="all", checkpoint=tmp_path)
    assert len(calls) == after + 1
    again = rs.jacobian_rank(model, x, cut_points="all", checkpoint=tmp_path)
    kept = [fact for fact in again.facts if fact.kind is FactKind.READ_BACK]
    assert [fact["kept"] for fact in kept] == ([after] if after else [])
    assert again.function_rank == whole.function_rank


def test_a_decision_is_made_once() -> None:
    made: list[int] = []

    def decides() -> Any:
        made.append(1)
        raise KeyboardInterrupt("now")

    one = Unsettled(decides)
    for ask in (one.settle, one.settle, one):
        with pytest.raises(KeyboardInterrupt, match="now"):
            ask()
    found = Finished([], 0)
    other = Unsettled(lambda: made.append(2) or (lambda: [found]))  # type: ignore[func-returns-value]
    other.settle()
    assert other() == other() == [found]
    assert made == [1, 2]


def test_the_threads_of_the_eigenvalues_end_when_waiting_for_them_is_stopped() -> None:
    def shutdown(*, wait: bool) -> None:
        raise KeyboardInterrupt("now")

    left: list[int] = []
    finisher = Finisher(torch.device("cpu"), torch.float32)
    finisher._pool = SimpleNamespace(shutdown=shutdown)  # type: ignore[assignment]
    finisher._leave.callback(left.append, 1)
    with pytest.raises(KeyboardInterrupt, match="now"):
        finisher.close()
    assert left == [1]


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_begun_on_a_gpu_has_ended_with_the_measurement(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def close() -> None:
        raise KeyboardInterrupt("now")

    waited: list[Any] = []

    def synchronize(device: Any) -> None:
        waited.append(device)
        if fails:
            raise RuntimeError("the device has failed")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    measurers = Measurers.__new__(Measurers)
    measurers.settings = SimpleNamespace(device=torch.device("cuda"))  # type: ignore[assignment]
    measurers.finisher = SimpleNamespace(close=close)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt, match="now"):
        measurers.close()
    assert waited == [torch.device("cuda")]


def test_nothing_is_begun_beside_a_sweep_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def ahead(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(batch.BatchMeasurer, "batch_size", lambda *_: 1)
    monkeypatch.setattr(Replayed, "ahead", ahead)
    profile = rs.jacobian_rank(Branches().eval(), torch.randn(2, 5), cut_points="all")
    assert all(spectrum.rank().certified for layer in profile.layers for spectrum in layer.spectra)
