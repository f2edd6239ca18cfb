"""What callbacks hand on to their ``RankMonitor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from rankscope._base.checks import MemoryBudget
from rankscope._base.errors import UsageError, nearest
from rankscope.features.reduction import Channels, Reduce
from rankscope.monitor import CollapseAlarm, JacobianProbe

__all__ = ["MonitorOptions", "check_options"]


class MonitorOptions(TypedDict, total=False):
    """Parameters of ``RankMonitor`` that a callback takes."""

    every: int
    metrics: str | Sequence[str]
    jacobian: JacobianProbe | None
    reduce: Reduce
    channels: Channels
    inputs: Any
    alarms: CollapseAlarm | Sequence[CollapseAlarm]
    path: str | Path | None
    memory_budget: MemoryBudget


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no monitor takes, before any training.

    >>> check_options({"every": 10})
    """
    known = sorted(MonitorOptions.__annotations__)
    for name in options:
        if name not in known:
            raise UsageError(f"a RankCallback has no option {name!r}; {nearest(name, known)}")
