"""Batches in flight: on a GPU the next batch is read and launched while the one before is still being worked on.

Whatever waits for the device in the middle of a pass (a check for NaN, a copy to the host, a count read back) empties
its queue, and reading the next batch then costs forward time. So batches are read and copied by a thread, reductions
stay on the device, and one small copy per batch, looked at a batch later, says whether all values were finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from rankscope._base.errors import DataError
from rankscope.features._inputs import first_bad_row
from rankscope.features.sources import Batch
from rankscope.linear.graphs import stream_beside
from rankscope.slicing.batches import mapped

__all__ = ["InFlight", "launch", "on_device"]


@dataclass(frozen=True, eq=False)
class InFlight:
    """What one forward pass left: rows by layer on the device, features and logits on their way to the host."""

    batch: Batch
    rows: dict[str, torch.Tensor]
    features: torch.Tensor
    logits: torch.Tensor
    sums: torch.Tensor
    done: Any

    def check(self) -> None:
        """Wait for the copies; raise ``DataError`` naming layer and sample where a value is NaN or infinite."""
        if self.done is not None:
            self.done.synchronize()
        if bool(self.sums.isfinite().all()):
            return
        # the sum of finite values may overflow: the rows themselves decide
        for name, rows in (("final features", self.features), *self.rows.items()):
            bad = first_bad_row(rows)
            if bad is not None:
                sample = int(self.batch.indices[bad // (len(rows) // len(self.batch.indices))])
                raise DataError(
                    f"{name}: sample {sample} holds a NaN or infinite value; look at that input, or for an overflow in "
                    "the layers before"
                )


def launch(batch: Batch, rows: dict[str, torch.Tensor], features: torch.Tensor, logits: torch.Tensor) -> InFlight:
    """Start the copies of a batch to the host; nothing waits for the device."""
    sums = torch.stack([values.sum(dtype=torch.float64) for values in (features, *rows.values())])
    cuda = features.device.type == "cuda"
    host = [values.to("cpu", non_blocking=cuda) for values in (features, logits, sums)]
    done = None
    if cuda:
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(features.device))
    return InFlight(batch, rows, host[0], host[1], host[2], done)


def on_device(source: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches with inputs on ``device``; for a GPU one is read and copied ahead, by a thread on its own stream."""
    if device.type != "cuda":
        for batch in source:
            yield _moved(batch, lambda tensor: tensor.to(device))
        return
    stream = stream_beside(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    iterator = iter(source)

    def pinned_to(tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor
        return pinned.to(device, non_blocking=True)

    def fetch() -> tuple[Batch, torch.cuda.Event] | None:
        # all of it on the stream: a data set on the GPU must not wait for the forward pass either
        with torch.cuda.stream(stream):
            batch = next(iterator, None)
            if batch is None:
                return None
            moved = _moved(batch, pinned_to)
            event = torch.cuda.Event()
            event.record(stream)
        return moved, event

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(fetch)
        while (got := ahead.result()) is not None:
            ahead = pool.submit(fetch)
            batch, event = got
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for tensor in _tensors(batch):
                tensor.record_stream(current)  # its memory belongs to the other stream
            yield batch


def _moved(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    return batch if batch.call is None else replace(batch, call=mapped(batch.call, change))


def _tensors(batch: Batch) -> list[torch.Tensor]:
    if batch.call is None:
        return []
    shared = [value for value in batch.call.shared.values() if isinstance(value, torch.Tensor)]
    return [batch.call.x, *batch.call.per_sample.values(), *shared]
