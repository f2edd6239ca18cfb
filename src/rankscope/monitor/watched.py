"""What ``watch`` found: ranks and metrics of every layer at every checkpoint of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankscope._base.errors import UsageError, nearest
from rankscope._base.facts import Fact
from rankscope._base.records import ByValue, Record
from rankscope.views.noted import Noted
from rankscope.views.watch_figure import plot_heat_map, plot_step_curves
from rankscope.views.watch_text import watched_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["WatchedRun", "WatchedStep", "WatchedValue"]

_COLUMNS = ("step", "layer", "metric", "value", "samples", "lower", "upper", "file")


@dataclass(frozen=True, eq=False)
class WatchedValue(ByValue):
    """One number of one layer; NaN where it is unknown, and NaN bounds where there are none."""

    layer: str
    metric: str
    value: float
    lower: float
    upper: float
    samples: int


@dataclass(frozen=True, eq=False)
class WatchedStep(ByValue):
    """One checkpoint: its step of training, the name of its file or folder, and its numbers."""

    step: int
    file: str
    values: tuple[WatchedValue, ...]


@dataclass(frozen=True, eq=False, repr=False)
class WatchedRun(Noted, Record):
    """Ranks and metrics by layer and checkpoint of one training run. ``facts`` name what was left out and why.

    Attributes
    ----------
    folder : str
        The folder of the checkpoints.
    unit : str
        What their steps count: ``step``, ``iteration``, ``epoch``, or ``number`` for bare numbers in names.
    steps : tuple of WatchedStep
        One entry per checkpoint, in order of step.
    """

    folder: str
    unit: str
    steps: tuple[WatchedStep, ...]
    facts: tuple[Fact, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order of depth."""
        return tuple(dict.fromkeys(value.layer for step in self.steps for value in step.values))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what was measured."""
        return tuple(dict.fromkeys(value.metric for step in self.steps for value in step.values))

    def values(self, metric: str | None = None) -> NDArray[np.float64]:
        """(layers, checkpoints) float64 of one metric, by default the first; NaN where a layer has none.

        Raises
        ------
        UsageError
            For a metric that was not measured, and where nothing was.
        """
        chosen = self._metric(metric)
        place = {layer: i for i, layer in enumerate(self.layers)}
        made = np.full((len(place), len(self.steps)), np.nan)
        for column, step in enumerate(self.steps):
            for value in step.values:
                if value.metric == chosen:
                    made[place[value.layer], column] = value.value
        return made

    def table(self) -> pd.DataFrame:
        """One row a number: step, layer, metric, value, samples, bounds, file."""
        import pandas as pd

        rows = [
            (step.step, v.layer, v.metric, v.value, v.samples, v.lower, v.upper, step.file)
            for step in self.steps
            for v in step.values
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS))

    @property
    def history(self) -> pd.DataFrame:
        """The same table, under the name that a monitor's has: ``compare`` takes either."""
        return self.table()

    def plot(self, metric: str | None = None, *, ax: Axes | None = None) -> Axes:
        """A heat map of layer by checkpoint; ``metric`` is by default the first."""
        chosen, steps = self._metric(metric), [step.step for step in self.steps]
        return plot_heat_map(self.values(chosen), self.layers, steps, chosen, self.unit, ax=ax)

    def curves(self, metric: str | None = None, *, ax: Axes | None = None) -> Axes:
        """One curve per layer over the steps."""
        chosen, steps = self._metric(metric), [step.step for step in self.steps]
        return plot_step_curves(self.values(chosen), self.layers, steps, chosen, self.unit, ax=ax)

    def _metric(self, metric: str | None) -> str:
        if not self.metrics:
            raise UsageError("nothing was measured")
        if metric is None:
            return self.metrics[0]
        if metric not in self.metrics:
            raise UsageError(f"no metric {metric!r} was measured; {nearest(metric, self.metrics)}")
        return metric

    def __str__(self) -> str:
        steps = [step.step for step in self.steps]
        return watched_text({m: self.values(m) for m in self.metrics}, self.layers, steps, self.unit, self.facts)

    def __repr__(self) -> str:
        return str(self)
