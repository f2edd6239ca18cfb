"""The readable samples of a command's data, as the calls that measure features; the others are named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rankscope._base.errors import DataError
from rankscope._base.progress import Reporter
from rankscope.features.sources import Skipped, batches
from rankscope.slicing.calls import Call

__all__ = ["readable_calls"]


def readable_calls(
    model: nn.Module,
    dataset: Any,
    options: dict[str, Any],
    *,
    batch_size: int,
    skipped: list[Skipped],
    report: Reporter | None = None,
) -> Iterator[Call]:
    """Batches of ``dataset`` in order. ``skipped`` takes what could not be read.

    Raises
    ------
    DataError
        Where nothing could be read.
    """
    for batch in batches(model, dataset, 0, batch_size=batch_size, num_workers=0, options=options):
        if report is not None:
            report(batch.after, len(dataset), "measuring")
        skipped.extend(batch.skipped)
        if batch.call is not None:
            yield batch.call
    if len(skipped) == len(dataset):
        first = f"; the first: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"the data hold no readable sample ({len(skipped)} skipped{first})")
