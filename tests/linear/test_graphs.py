"""What cannot be recorded simply runs, and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rankscope._base.errors import MeasurementError
from rankscope.linear import graphs


@pytest.mark.parametrize("error", [RuntimeError("it waits for the device"), MeasurementError("reverse mode fails")])
def test_a_failed_recording_is_refused_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """No GPU is needed: the recording itself is replaced by one that fails, as where a model reads a value."""
    tried: list[int] = []

    def fails(function: Any, pool: Any) -> Any:
        tried.append(1)
        raise error

    monkeypatch.setattr(graphs, "record", fails)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: None)
    replayed = graphs.Replayed(lambda x: 2 * x, enabled=False)
    replayed.enabled = True
    for value in (1.0, 2.0, 3.0):
        assert float(replayed((), [torch.tensor(value)])) == 2 * value
    assert tried == [1]
    assert str(error) in replayed.refused


@pytest.mark.cuda
def test_random_numbers_can_be_drawn_after_a_failed_recording() -> None:
    x = torch.ones(4, device="cuda")
    state = torch.cuda.get_rng_state()
    replayed = graphs.Replayed(lambda x: x * float(x.sum()), enabled=True)
    for _ in range(3):
        assert torch.equal(replayed((), [x]), 4 * x)
    assert replayed.refused
    assert torch.equal(torch.cuda.get_rng_state(), state)
    first = torch.rand(3, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), first)
