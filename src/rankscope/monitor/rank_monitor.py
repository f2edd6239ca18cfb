"""``RankMonitor``: ranks and dimensions of a network's features while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from rankscope._base.checks import MemoryBudget, budget_of, count_of, names_of, path_of
from rankscope._base.errors import MeasurementError, RankscopeError, UsageError, nearest
from rankscope.features.cut_names import cut_names, is_plain
from rankscope.features.feature_profile import LayerFeatures
from rankscope.features.feature_rank import feature_rank
from rankscope.features.hooks import resolve_layer
from rankscope.features.reduction import Channels, Reduce, check_reduce
from rankscope.monitor.alarm import Collapse, CollapseAlarm
from rankscope.monitor.history import Entry, History, Moment
from rankscope.monitor.hooks import StepFeatures
from rankscope.monitor.jacobian_probe import JacobianProbe
from rankscope.monitor.loggers import Logger
from rankscope.monitor.merging import is_main, merge_processes
from rankscope.monitor.passes import called_with, eager_pass, is_compiled
from rankscope.slicing import CutPointsLike
from rankscope.slicing.reader import read_samples
from rankscope.slicing.wrapped import unwrapped

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRICS", "RankMonitor"]

METRICS = (
    "rankme",
    "effective_rank",
    "participation_ratio",
    "stable_rank",
    "pca_dimension",
    "variance_dimension_90",
    "variance_dimension_95",
    "variance_dimension_99",
    "alpha_req",
)


class RankMonitor:
    """Watches the dimensions of features, and Jacobian ranks, during training; training is what it is without.

    Steps 0, ``every``, 2·``every``, … are monitored. In these, forward hooks read the features of the batch that is
    trained on; in all others there are none. Call ``step()`` once after each optimiser step, or use the monitor as a
    context manager around such a loop. A layer that cannot be read (NaN, a batch of one, another width) is named with
    the step in a Python warning and in the history, and training goes on.

    Under ``torch.compile`` hooks that come later never fire. There the monitor runs the original module once, eagerly
    and without gradients, on a copy of the batch in monitored steps; buffers and random state are put back. Under
    ``DistributedDataParallel`` the features of all processes count together, and the first process writes.

    Parameters
    ----------
    model : nn.Module
        What the training loop calls: the compiled or wrapped module where there is one.
    cut_points : "blocks", "all", name, glob, or a list of names and globs
        As in ``feature_rank``; what is not a plain name is looked up with the first batch.
    every : int
        Steps from one monitored step to the next.
    metrics : sequence of str
        Columns of ``feature_rank``: rankme, effective_rank, participation_ratio, stable_rank, pca_dimension,
        variance_dimension_90, _95, _99, alpha_req.
    jacobian : JacobianProbe, optional
        Jacobian ranks of the network as it stands, on inputs of its own.
    loggers : Logger or sequence of them, optional
        Where numbers go too. One that raises is named once, and training goes on.
    reduce, channels
        How a feature map becomes rows: see ``feature_rank``.
    inputs : optional
        A fixed probe batch, read as ``feature_rank`` reads data: its features in evaluation mode are measured in place
        of the training batch's.
    alarms : CollapseAlarm or sequence of them, optional
        What to do when a value stays too low.
    path : path, optional
        A file of JSON lines that keeps the history, one line a monitored step. Where it exists, it is continued.
    memory_budget : int or str, optional
        Bytes for the moments of all cut points in a monitored step; default: 4e9.

    Raises
    ------
    UsageError, CutPointError
        For options that cannot be used and layers that the model does not have.
    OutputError
        For a history that cannot be read.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> optimiser = torch.optim.SGD(net.parameters(), 0.1)
    >>> with RankMonitor(net, cut_points=["0", "2"], every=2) as monitor:
    ...     for _ in range(3):
    ...         loss = net(torch.randn(16, 6)).square().mean()
    ...         loss.backward()
    ...         optimiser.step()
    ...         monitor.step()
    >>> monitor.history["step"].unique().tolist()
    [0, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        cut_points: CutPointsLike = "blocks",
        *,
        every: int = 100,
        metrics: str | Sequence[str] = ("rankme", "effective_rank"),
        jacobian: JacobianProbe | None = None,
        loggers: Logger | Sequence[Logger] | None = None,
        reduce: Reduce = "pool",
        channels: Channels = "auto",
        inputs: Any = None,
        alarms: CollapseAlarm | Sequence[CollapseAlarm] = (),
        path: str | Path | None = None,
        memory_budget: MemoryBudget = None,
    ) -> None:
        self._inner, self.cut_points, _ = unwrapped(model, cut_points)
        self.model = model
        self.every = count_of(every, "every")
        self.metrics = tuple(names_of(metrics, "metrics"))
        for name in self.metrics:
            if name not in METRICS:
                raise UsageError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
        if jacobian is not None and not isinstance(jacobian, JacobianProbe):
            raise UsageError(f"jacobian is a {type(jacobian).__name__}; give rs.JacobianProbe(inputs, …)")
        check_reduce(reduce, channels)
        self.jacobian, self.reduce, self.channels, self.inputs = jacobian, reduce, channels, inputs
        self.loggers = _several(loggers, Logger, "loggers")
        self.alarms = _several(alarms, CollapseAlarm, "alarms")
        self.should_stop = False
        """Whether an alarm with ``action="stop"`` has rung."""
        self._memory = 4e9 if memory_budget is None else budget_of(memory_budget, torch.device("cpu"))
        self._names: list[str] | None = None
        if is_plain(self._inner, self.cut_points):
            self._names = [self.cut_points] if isinstance(self.cut_points, str) else list(self.cut_points)
            for name in self._names:
                resolve_layer(self._inner, name)
        self._history = History(None if path is None else path_of(path, "path"), write=is_main())
        last = self._history.last_step
        self._step = 0 if last is None else last + 1
        self._features: StepFeatures | None = None
        self._watching: ExitStack | None = None
        self._said: set[str] = set()
        self._events: list[str] = []
        self._checked = False
        self._arm()

    # ---- a step of training --------------------------------------------------------------------------------------

    def step(self, at: int | None = None) -> None:
        """Say that a training step is over; measures where it was a monitored one.

        ``at`` is the number of the step that is over, where the trainer counts; default: one more than the last.
        """
        if at is not None and count_of(at, "at", least=0) != self._step:
            self._move(at)
        due = self._step % self.every == 0
        probed = self.jacobian is not None and self._step % self.jacobian.every == 0
        try:
            if due or probed:
                self._measure(due=due, probed=probed)
        finally:
            self._disarm()
            self._step += 1
        self._arm()

    def _move(self, at: int) -> None:
        self._step = at
        if at % self.every and self._features is not None:
            self._disarm()

    def _arm(self) -> None:
        """Hooks for the step that comes, where it is a monitored one."""
        if self._step % self.every or self.inputs is not None or self._watching is not None:
            return
        self._watching = ExitStack()
        self._watching.enter_context(called_with(self.model, self._called))

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass of a monitored step begins."""
        if not self._inner.training:
            return
        if self._names is None:
            self._names = self._look_up(args, kwargs)
        compiled = is_compiled(self.model)
        if self._features is None:
            self._features = StepFeatures(self._inner, self._names, self.reduce, self.channels, self._memory)
            if not compiled:
                self._features.attach()
                self._features.begin(args, kwargs)  # its own hook comes too late for this pass
        if compiled:
            self._say("the model is compiled: in monitored steps its original module runs once more, eagerly")
            self._features.attach()
            try:
                eager_pass(self._inner, args, kwargs)
            finally:
                self._features.detach()

    def _look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        if args and kwargs:
            raise UsageError("blocks and globs need a batch of positional or of named inputs alone; name layers")
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        with torch.compiler.set_stance("force_eager"):
            sample = next(read_samples(self._inner, inputs, limit=1))
            return cut_names(self._inner, sample, self.cut_points)

    def _disarm(self) -> None:
        if self._features is not None:
            self._features.detach()
        self._features = None
        if self._watching is not None:
            self._watching.close()
            self._watching = None

    # ---- measuring -----------------------------------------------------------------------------------------------

    def _measure(self, *, due: bool, probed: bool) -> None:
        entries: list[Entry] = []
        self._events = []
        if due:
            entries += self._of_probe_batch() if self.inputs is not None else self._of_training_batch()
        if probed and self.jacobian is not None and is_main():
            try:
                with torch.compiler.set_stance("force_eager"):
                    entries += self.jacobian.measure(self._inner, self.cut_points)
            except RankscopeError as error:
                self._event(f"Jacobian rank: {error}")
        moment = Moment(self._step, tuple(entries), tuple(self._events))
        self._history.add(moment)
        if self._history.unwritten:
            self._say(f"the history cannot be written ({self._history.unwritten}); it is kept in memory")
        self._log(moment)
        for alarm in self.alarms:
            for collapse in alarm.look(moment):
                self._ring(alarm, collapse)

    def _of_training_batch(self) -> list[Entry]:
        features = self._features
        if features is not None:
            features.detach()
        names = self._names or []
        if features is None or not (features.seen or torch.distributed.is_initialized()):
            why = (
                "no forward pass in training mode went through the model that the monitor was given; give it the "
                "module that the training loop calls, the compiled or wrapped one where there is one"
            )
            if not self._checked:
                self._checked = True
                raise MeasurementError(f"step {self._step}: {why}")
            self._event(why)
            return []
        self._checked = True
        merge_processes(features, names)
        entries = []
        for name in names:
            found = features.read(name)
            if found is None:
                self._event(features.errors[name])
            entries += self._entries(name, found)
        return entries

    def _of_probe_batch(self) -> list[Entry]:
        try:
            with torch.compiler.set_stance("force_eager"):
                profile = feature_rank(
                    self._inner,
                    self.inputs,
                    cut_points=self.cut_points if self._names is None else self._names,
                    reduce=self.reduce,
                    channels=self.channels,
                    memory_budget=self._memory,
                )
        except UsageError:  # a question that can never be answered
            raise
        except RankscopeError as error:
            self._event(str(error))
            return []
        self._names = [layer.name for layer in profile]
        return [entry for layer in profile for entry in self._entries(layer.name, layer)]

    def _entries(self, name: str, found: LayerFeatures | None) -> list[Entry]:
        row = {} if found is None else found.to_dict()
        samples = 0 if found is None else found.samples
        values = [(metric, row.get(metric)) for metric in self.metrics]
        return [Entry(name, metric, float("nan") if v is None else float(v), samples) for metric, v in values]

    # ---- telling -------------------------------------------------------------------------------------------------

    def _log(self, moment: Moment) -> None:
        if not self.loggers or not is_main():
            return
        values = {f"rank/{e.layer}/{e.metric}": e.value for e in moment.entries if e.value == e.value}
        for logger in self.loggers:
            try:
                logger.log(values, moment.step)
            except Exception as error:  # another's code: training goes on without it
                self._say(f"the logger {type(logger).__name__} failed ({type(error).__name__}: {error})")

    def _ring(self, alarm: CollapseAlarm, collapse: Collapse) -> None:
        if callable(alarm.action):
            alarm.action(collapse)
            return
        if is_main():
            warnings.warn(f"rankscope: {collapse}", UserWarning, stacklevel=5)
        self.should_stop |= alarm.action == "stop"

    def _event(self, text: str) -> None:
        self._events.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        """Warn once of each."""
        if text not in self._said and is_main():
            self._said.add(text)
            warnings.warn(f"rankscope, step {self._step}: {text}", UserWarning, stacklevel=6)

    # ---- what was seen -------------------------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row a number: step, layer, metric, value (NaN where it could not be measured), samples."""
        return self._history.table()

    @property
    def events(self) -> list[tuple[int, str]]:
        """What could not be measured, by step."""
        return [(moment.step, text) for moment in self._history.moments for text in moment.events]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the training run keeps of the monitor."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: what was monitored after it is replaced as training goes on."""
        self._disarm()
        self._step = count_of(state["step"], "step", least=0)
        self._arm()

    def close(self) -> None:
        """Remove all hooks. What was seen stays."""
        self._disarm()

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _several(given: Any, kind: Any, name: str) -> tuple[Any, ...]:
    found = () if given is None else (given,) if isinstance(given, kind) else given
    several = tuple(found) if isinstance(found, Iterable) else None
    if several is None or not all(isinstance(one, kind) for one in several):
        raise UsageError(f"{name} is {given!r}; give a {kind.__name__} or a list of them")
    return several
