"""What cannot be recorded simply runs, and says why."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from rankscope._base.errors import MeasurementError
from rankscope.linear import graphs


@pytest.mark.parametrize("error", [RuntimeError("it waits for the device"), MeasurementError("reverse mode fails")])
def test_a_failed_recording_is_refused_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """No GPU is needed: the recording itself is replaced by one that fails, as where a model reads a value."""
    tried: list[int] = []

    def fails(function: Any, pool: Any, stream: Any) -> Any:
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


@pytest.mark.cuda
def test_what_is_replayed_beside_other_work_gives_the_same() -> None:
    """Products of matrices on both sides, so that a shared work space would show."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    fixed = torch.randn(64, 4096, device="cuda", generator=generator, dtype=torch.float64)
    heavy = torch.randn(4096, 4096, device="cuda", generator=generator)
    beside = graphs.Replayed(lambda x: (fixed @ x) @ fixed, enabled=True, beside=True)
    plain = graphs.Replayed(lambda x: x @ heavy, enabled=True)
    for step in range(6):
        x = torch.randn(4096, 64, device="cuda", generator=generator, dtype=torch.float64)
        started = beside.ahead((), [x])
        assert (started is None) == (step < 2)  # recorded with the second call
        product = plain((), [heavy])
        found = beside((), [x]) if started is None else started()
        for one, other in ((found, (fixed @ x) @ fixed), (product, heavy @ heavy)):
            # sums of at most 4,096 products, twice, in an order of their own
            rounding = 2 * 4096 * torch.finfo(one.dtype).eps * float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=rounding)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()

    def fails() -> None:
        with graphs.nothing_is_collected():
            assert not gc.isenabled()
            raise KeyError("inside")

    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError, match="inside"):
            fails()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
