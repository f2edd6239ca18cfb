"""The value of one batch, which ``metric(batch)`` of torchmetrics returns while it adds the batch to all others.

torchmetrics computes it on the metric itself, emptied for the time being. What a metric keeps beside its states would
then be that of the batch, and a batch without a value of its own, such as a last one of a single row, would end in an
error that leaves the metric empty. So the value is computed on a copy.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from rankscope._base.world import group_size
from rankscope.loading import ensure_torchvision

ensure_torchvision()  # torchmetrics imports it, and dies beside a torch of another variant
from torchmetrics import Metric  # noqa: E402

__all__ = ["ValueOfBatch"]


class ValueOfBatch(Metric):
    """A metric whose ``forward`` adds a batch and returns the batch's own value, NaN where it has none."""

    def no_value(self) -> Any:
        """What stands for the value where the rows are too few for one; ``None`` where they are enough."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch. The value is that of this batch alone, NaN where its rows are too few for one."""
        for name in self._defaults:  # a collection lets its metrics share one state
            state = getattr(self, name)
            setattr(self, name, list(state) if isinstance(state, list) else state.clone())
        self.update(*args, **kwargs)
        states = [getattr(self, name) for name in self._defaults]
        # the rows so far are no part of the copy
        alone = deepcopy(self, {id(state): [] for state in states if isinstance(state, list)})
        alone.reset()
        alone._to_sync = self.dist_sync_on_step
        alone.update(*args, **kwargs)
        # all processes compute together, also where the rows of one of them are too few
        found = None if self.dist_sync_on_step and (group_size() or 1) > 1 else alone.no_value()
        self._forward_cache = alone.compute() if found is None else found
        return self._forward_cache
