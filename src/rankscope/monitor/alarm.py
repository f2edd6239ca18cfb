"""An alarm for a value that stays too low: the sign of dimensional collapse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from rankscope._base.checks import choice_of, count_of, number_of
from rankscope._base.errors import UsageError, nearest
from rankscope.monitor.history import Moment
from rankscope.monitor.jacobian_probe import JACOBIAN_METRICS

__all__ = ["Action", "Collapse", "CollapseAlarm", "check_alarms"]


@dataclass(frozen=True)
class Collapse:
    """What an alarm hands to its action."""

    step: int
    layer: str
    metric: str
    value: float
    below: float
    patience: int

    def __str__(self) -> str:
        times = "" if self.patience == 1 else f" for {self.patience} monitored steps in a row"
        return f"{self.metric} of {self.layer!r} is {self.value:.4g} at step {self.step}, below {self.below:g}{times}"


Action: TypeAlias = Literal["warn", "stop"] | Callable[[Collapse], Any]


@dataclass(eq=False)
class CollapseAlarm:
    """An alarm for a metric of a layer that is below a value in ``patience`` monitored steps in a row.

    It rings once for each fall: again only after the value has recovered. NaN counts neither way.

    Parameters
    ----------
    metric : str
        The name of a metric of the monitor, or ``"jacobian_rank"``.
    below : float
        In the metric's own units (dimensions).
    patience : int
        Monitored steps in a row.
    action : "warn", "stop" or callable
        A Python warning; the same and ``monitor.should_stop`` (integrations stop the trainer); or a function of a
        ``Collapse``.
    layer : str, optional
        One cut point; default: any.

    Examples
    --------
    >>> CollapseAlarm("effective_rank", below=2.0, patience=3, action="stop").metric
    'effective_rank'
    """

    metric: str
    below: float
    patience: int = 1
    action: Action = "warn"
    layer: str | None = None
    _low: dict[str, int] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        number_of(self.below, "below")
        count_of(self.patience, "patience")
        if not callable(self.action):
            choice_of(self.action, "action", ["warn", "stop"])
        if not isinstance(self.metric, str):
            raise UsageError(f"metric is {self.metric!r}; give the name of a metric of the monitor")

    def fresh(self) -> CollapseAlarm:
        """The same alarm with nothing seen: each monitor counts by itself, and anew after going back."""
        return replace(self)

    def look(self, moment: Moment) -> list[Collapse]:
        """What rings at this moment."""
        rung = []
        for entry in moment.entries:
            if entry.metric != self.metric or self.layer not in (None, entry.layer) or entry.value != entry.value:
                continue
            low = self._low.get(entry.layer, 0) + 1 if entry.value < self.below else 0
            self._low[entry.layer] = low
            if low == self.patience:
                found = (moment.step, entry.layer, entry.metric, entry.value, self.below, self.patience)
                rung.append(Collapse(*found))
        return rung


def check_alarms(alarms: Iterable[CollapseAlarm], measured: Sequence[str], layers: Sequence[str] | None) -> None:
    """Refuse an alarm that could never ring: its metric is not measured, or its layer is none of these."""
    for alarm in alarms:
        of_jacobian = alarm.metric in JACOBIAN_METRICS
        if alarm.metric not in measured:
            remedy = "give jacobian=rs.JacobianProbe(…)" if of_jacobian else nearest(alarm.metric, measured)
            raise UsageError(f"the alarm watches {alarm.metric!r}, which this monitor does not measure; {remedy}")
        if layers is not None and alarm.layer is not None and not of_jacobian and alarm.layer not in layers:
            raise UsageError(f"the alarm watches layer {alarm.layer!r}; {nearest(alarm.layer, layers)}")
