"""Whether two models were called with the same samples: a digest of each sample, by the name of the input."""

from __future__ import annotations

from collections.abc import Mapping

from rankscope._base.files import digest_of_tensors
from rankscope.slicing.calls import Call
from rankscope.slicing.containers import arrays_of, rows_of

__all__ = ["DataDigests"]


class DataDigests:
    """Digests of each sample's inputs, by name; an input that forward takes first, whatever its name, is ``""``."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[str]] = {}

    def take_in(self, call: Call) -> None:
        """Add the samples of a call."""
        for name, value in {call.keyword or "": call.x, **call.per_sample}.items():
            kept = self.by_name.setdefault(name, [])
            # one sample at a time: models that take other inputs of the same data may lead to other batches
            kept += [digest_of_tensors(arrays_of(rows_of(value, i, i + 1))) for i in range(len(call))]

    def first_other(self, others: DataDigests) -> int | None:
        """The first sample of another digest in an input that both have; ``None`` where there is none."""
        both: Mapping[str, list[str]] = {name: kept for name, kept in self.by_name.items() if name in others.by_name}
        apart = (
            i
            for name, kept in both.items()
            for i, (a, b) in enumerate(zip(kept, others.by_name[name], strict=False))
            if a != b
        )
        return min(apart, default=None)
