"""What cannot be recorded simply runs, and says why."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rankscope._base.errors import MeasurementError
from rankscope.features import pipeline
from rankscope.jacobian.finish import Finisher
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


class Streams:
    """Stands for torch's streams where there is no GPU: few, handed out again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.made, self.recorded = "the caller's", 0, ""
        monkeypatch.setattr(graphs, "_RECORDING", {})
        monkeypatch.setattr(torch.cuda, "Stream", self.another)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "graph", self.recording)

    def another(self, device: Any) -> str:
        self.made += 1
        return f"stream {self.made % 3}"

    @contextmanager
    def recording(self, graph: Any, *, stream: str, **options: Any) -> Iterator[None]:
        before, self.current, self.recorded = self.current, stream, stream
        yield
        self.current = before  # as torch does it: not where the recording fails


def test_no_other_work_is_given_the_stream_of_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    graphs.record(lambda: None, None)
    recording = streams.recorded
    drawn = {graphs.stream_beside(torch.device("cuda")) for _ in range(7)}
    assert drawn == {"stream 0", "stream 1", "stream 2"} - {recording}
    graphs.record(lambda: None, None)
    assert streams.recorded == recording
    assert graphs.recording_stream(torch.device("cuda", 1)) is not graphs.recording_stream(torch.device("cuda", 0))


def test_threads_beside_a_measurement_take_such_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    graphs.record(lambda: None, None)
    for _ in range(5):
        finisher = Finisher(torch.device("cuda"), torch.float32)
        finisher.close()
        assert finisher._stream not in (None, streams.recorded)

    def drawn(device: torch.device) -> None:
        raise KeyError("drawn")

    monkeypatch.setattr(pipeline, "stream_beside", drawn)
    with pytest.raises(KeyError, match="drawn"):
        next(pipeline.on_device(iter(()), torch.device("cuda")))


@pytest.mark.parametrize("error", [RuntimeError("inside"), KeyboardInterrupt("inside")])
def test_a_failed_recording_leaves_the_current_stream(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    streams = Streams(monkeypatch)
    left: list[str] = []

    def leaves() -> None:
        left.append(streams.current)
        streams.current = "that of another failed recording"

    def fails() -> None:
        raise error

    monkeypatch.setattr(graphs, "_leave_recording", leaves)
    with pytest.raises(type(error), match="inside"):
        graphs.record(fails, None)
    assert left == [streams.current] == ["the caller's"]


@pytest.mark.cuda
@pytest.mark.parametrize("own", [False, True])
def test_a_failed_recording_leaves_the_current_stream_of_a_gpu(own: bool) -> None:
    x = torch.ones(4, device="cuda")
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="captur"):
        graphs.record(
            lambda: x.sum().item(), torch.cuda.graph_pool_handle(), torch.cuda.Stream(priority=-1) if own else None
        )
    assert torch.cuda.current_stream() == before
    assert float((2 * x).sum()) == 8


@pytest.mark.cuda
def test_a_gpu_gives_other_work_a_stream_of_its_own() -> None:
    device = torch.device("cuda")
    recording = graphs.recording_stream(device)
    assert recording == graphs.recording_stream()
    assert all(graphs.stream_beside(device) != recording for _ in range(70))  # torch has 32 of them


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
