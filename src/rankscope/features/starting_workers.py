"""A loader's ``worker_init_fn`` in the workers of another loader, whose data set holds that of the first inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

__all__ = ["OwnDataset", "by_itself", "workers_of"]


def workers_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """How a loader starts its workers, as options of another loader of the same samples; nothing where it has none."""
    if not loader.num_workers:
        return {}
    start = loader.worker_init_fn
    return {
        "multiprocessing_context": loader.multiprocessing_context,
        "timeout": loader.timeout,
        "prefetch_factor": loader.prefetch_factor,
        "worker_init_fn": None if start is None else OwnDataset(start, loader.dataset),
    }


def by_itself(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for a first look: without workers, unless the data set is made ready in one."""
    starts = options.get("workers", {}).get("worker_init_fn") is not None
    return {**options, "num_workers": 1 if starts else 0}


@dataclass(frozen=True)
class OwnDataset:
    """Calls the function where ``get_worker_info().dataset`` is the user's own data set: it opens files there."""

    start: Callable[[int], Any]
    dataset: Any

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", self.dataset)  # torch freezes it
        self.start(worker)
