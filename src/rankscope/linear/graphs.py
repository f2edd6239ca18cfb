"""Replay kernels on an NVIDIA GPU without the cost of launching them one by one.

A transformer's pass launches thousands of small kernels, through Python and two layers of transforms; the launches, not
the arithmetic, take most of its time. A CUDA graph records them once and replays them for every further chunk and
image: the same kernels on other numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from rankscope._base.errors import MeasurementError, first_line

__all__ = ["Replayed", "nothing_is_collected", "record", "recording_stream", "stream_beside"]

Pool = Any

_RECORDING: dict[int, torch.cuda.Stream] = {}  # by device


def recording_stream(device: torch.device | None = None) -> torch.cuda.Stream:
    """The stream on which this process records, one a device (``None``: the current one)."""
    index = None if device is None else device.index
    index = torch.cuda.current_device() if index is None else index
    if index not in _RECORDING:
        _RECORDING[index] = torch.cuda.Stream(index)
    return _RECORDING[index]


def stream_beside(device: torch.device) -> torch.cuda.Stream:
    """A stream for work of another thread: torch hands out the same few again and again, but never the recording one.

    What another thread put on that one while something is recorded would become part of the recording.
    """
    recording = recording_stream(device)
    stream = torch.cuda.Stream(device)
    while stream == recording:
        stream = torch.cuda.Stream(device)
    return stream


def record(
    function: Callable[[], Any], pool: Pool, stream: torch.cuda.Stream | None = None
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Record ``function``; replaying the graph writes its (fixed) outputs again. Run it once before, to warm up.

    What is recorded on one stream shares the work space of its matrix products with all that was recorded there: a
    graph that is replayed beside others needs a ``stream`` of its own.
    """
    before = torch.cuda.current_stream()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    chosen = recording_stream() if stream is None else stream
    try:
        with (
            nothing_is_collected(),
            torch.cuda.graph(graph, pool=pool, stream=chosen, capture_error_mode="thread_local"),
        ):
            outputs = function()
    except BaseException:
        torch.cuda.set_stream(before)  # torch raises before it leaves the stream of a recording that it cannot end
        try:
            _leave_recording()
        finally:
            torch.cuda.set_stream(before)
        raise
    return graph, outputs


@contextmanager
def nothing_is_collected() -> Iterator[None]:
    """Inside, Python's collector looks for no cycles.

    It may free an older graph, and to destroy one ends the recording of another; and what a trace makes is so much that
    it would look through all that is loaded, for as long as a fifth of a first image.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _leave_recording() -> None:
    """After a failed recording torch's random generator still believes that one is under way; a whole one ends that."""
    with suppress(RuntimeError):
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=recording_stream(), capture_error_mode="thread_local"):
            torch.zeros(1, device="cuda")


class Replayed:
    """A function of tensors, recorded on its second call for each key and shape and replayed on later ones.

    A recording takes as long as several calls, so what is called once is not recorded. What a replay returns is
    overwritten by the next replay. Where recording fails the function simply runs, and ``refused`` says why.
    """

    def __init__(self, function: Callable[..., Any], *, enabled: bool, beside: bool = False) -> None:
        self.function, self.enabled = function, enabled
        self.refused = ""
        self._called: set[Any] = set()
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}
        self._pool: Pool = torch.cuda.graph_pool_handle() if enabled else None
        # of high priority: torch gives the same few streams again and again, but never one of these to a plain graph
        self._beside = torch.cuda.Stream(priority=-1) if enabled and beside else None

    def ahead(self, key: Any, inputs: Sequence[Tensor]) -> Callable[[], Any] | None:
        """Replay beside whatever the device is given next, if that was asked for and is recorded.

        What is returned makes the current stream wait, and gives the outputs.
        """
        found = self._recorded.get((key, *(tuple(t.shape) for t in inputs)))
        stream = self._beside
        if stream is None or found is None or self.refused:
            return None
        graph, static, outputs = found
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for place, value in zip(static, inputs, strict=True):
                place.copy_(value)
                value.record_stream(stream)
            graph.replay()
        done = stream.record_event()

        def finished() -> Any:
            torch.cuda.current_stream().wait_event(done)
            return outputs

        return finished

    def __call__(self, key: Any, inputs: Sequence[Tensor]) -> Any:
        if not self.enabled or self.refused:
            return self.function(*inputs)
        full_key = (key, *(tuple(t.shape) for t in inputs))
        if full_key not in self._called:
            self._called.add(full_key)
            return self.function(*inputs)
        if self._beside is not None:  # what was replayed there and not taken
            torch.cuda.current_stream().wait_stream(self._beside)
        found = self._recorded.get(full_key)
        if found is None:
            static = [t.clone() for t in inputs]
            try:
                graph, outputs = record(lambda: self.function(*static), self._pool, self._beside)
            except (RuntimeError, MeasurementError) as error:  # a product says which of its modes failed
                torch.cuda.synchronize()
                self.refused = first_line(error)
                return self.function(*inputs)
            found = self._recorded[full_key] = (graph, static, outputs)
        graph, static, outputs = found
        for place, value in zip(static, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return outputs
