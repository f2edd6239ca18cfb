"""``RankMonitor``: ranks and dimensions of a network's features while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from rankscope._base.checks import MemoryBudget, budget_of, choice_of, count_of, names_of, path_of
from rankscope._base.errors import MeasurementError, UsageError, nearest, type_and_line
from rankscope.features.cut_names import is_plain
from rankscope.features.feature_profile import DIMENSIONS, LayerFeatures
from rankscope.features.feature_rank import feature_rank
from rankscope.features.hooks import resolve_layer
from rankscope.features.reduction import Channels, Reduce, check_reduce
from rankscope.monitor.alarm import CollapseAlarm, check_alarms
from rankscope.monitor.history import Entry, History, Moment
from rankscope.monitor.hooks import TROUBLE, StepFeatures
from rankscope.monitor.jacobian_probe import JACOBIAN_METRICS, JacobianProbe
from rankscope.monitor.loggers import Logger
from rankscope.monitor.merging import any_process, from_main, is_main, merge_processes, processes
from rankscope.monitor.telling import Teller
from rankscope.monitor.training_batch import Called, TrainingBatch
from rankscope.slicing import CutPointsLike
from rankscope.slicing.wrapped import unwrapped

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RankMonitor"]


class RankMonitor:
    """Measures the dimensions of features, and Jacobian ranks, during training without changing the training.

    Steps 0, ``every``, 2·``every``, … are monitored. In these, forward hooks read the features of the training batch;
    in all others there are no hooks. Call ``step()`` once after each optimiser step, or use the monitor as a context
    manager around such a loop. A layer that cannot be read (NaN, a batch of one, another width) is named with the step
    in a Python warning and in the history, and training continues.

    Under ``torch.compile`` hooks that are added later never fire. There the monitor runs the original module once,
    eagerly and without gradients, on a copy of the batch in monitored steps; buffers and random state are restored.
    Under ``DistributedDataParallel`` the features of all processes count together, and the first process writes.

    Parameters
    ----------
    model : nn.Module
        What the training loop calls: the compiled or wrapped module where there is one.
    cut_points : "blocks", "all", name, glob, or a list of names and globs
        As in ``feature_rank``; what is not a plain name is looked up with the first batch. The name of a module that is
        called several times in one pass means its first call, ``layer#2`` its second.
    every : int
        Steps from one monitored step to the next.
    metrics : sequence of str
        Columns of ``feature_rank``: rankme, effective_rank, participation_ratio, stable_rank, pca_dimension,
        variance_dimension_90, _95, _99, alpha_req.
    jacobian : JacobianProbe, optional
        Jacobian ranks of the current network, on inputs of its own.
    loggers : Logger or sequence of them, optional
        Loggers that also receive the numbers. One that raises is named once, and training continues.
    reduce, channels
        How a feature map becomes rows: see ``feature_rank``.
    inputs : optional
        A fixed probe batch, read as ``feature_rank`` reads data: its features in evaluation mode are measured in place
        of the training batch's.
    alarms : CollapseAlarm or sequence of them, optional
        What to do when a value stays too low.
    path : path, optional
        A file of JSON lines that keeps the history, one line a monitored step. Where it exists, it is continued.
    called : "whole" or "parts"
        ``parts`` where the training loop does not call the model itself, but its children one by one.
    memory_budget : int or str, optional
        Bytes for the moments of all cut points in a monitored step; default: 4e9.

    Raises
    ------
    UsageError, CutPointError
        For options that cannot be used and layers that the model does not have.
    OutputError
        For a history that cannot be read or written, or that another monitor writes.

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
        called: Called = "whole",
        memory_budget: MemoryBudget = None,
    ) -> None:
        self._inner, self.cut_points, _ = unwrapped(model, cut_points)
        self.model = model
        self.every = count_of(every, "every")
        self.metrics = tuple(names_of(metrics, "metrics"))
        for name in self.metrics:
            if name not in DIMENSIONS:
                raise UsageError(f"unknown metric {name!r}; {nearest(name, DIMENSIONS)}")
        if not self.metrics and jacobian is None:
            raise UsageError(f"metrics is empty; {nearest('', DIMENSIONS)}")
        if jacobian is not None and not isinstance(jacobian, JacobianProbe):
            raise UsageError(f"jacobian is a {type(jacobian).__name__}; give rs.JacobianProbe(inputs, …)")
        check_reduce(reduce, channels)
        choice_of(called, "called", ["whole", "parts"])
        self.jacobian, self.reduce, self.channels, self.inputs = jacobian, reduce, channels, inputs
        self.alarms = _several(alarms, CollapseAlarm, "alarms")
        self.should_stop = False
        """Whether an alarm with ``action="stop"`` has rung, in any process."""
        self._memory = 4e9 if memory_budget is None else budget_of(memory_budget, torch.device("cpu"))
        names: list[str] | None = None
        if is_plain(self._inner, self.cut_points):
            names = [self.cut_points] if isinstance(self.cut_points, str) else list(self.cut_points)
            if not names:
                raise UsageError("cut_points is empty; give 'blocks', 'all' or the names of layers")
            for name in names:
                resolve_layer(self._inner, name)
        self._known = (*self.metrics, *(JACOBIAN_METRICS if jacobian is not None else ()))
        check_alarms(self.alarms, self._known, names)
        self._teller = Teller(_several(loggers, Logger, "loggers"))
        self._batch = TrainingBatch(
            model, self._inner, self.cut_points, names, called, (reduce, channels, self._memory), self._teller.say
        )
        self._history = History.of_process(None if path is None else path_of(path, "path"), writes=is_main())
        self._step = self._history.next_step
        self._events: list[str] = []
        self._checked = self._closed = False
        self._replay()
        self._arm()

    @property
    def calls_around(self) -> int:
        """How many calls of the model stand around each forward pass and are none: a trainer's own, usually 0."""
        return self._batch.around

    @calls_around.setter
    def calls_around(self, count: int) -> None:
        self._batch.around = count_of(count, "calls_around", least=0)

    # ---- a step of training --------------------------------------------------------------------------------------

    def begin(self, at: int) -> None:
        """Say that the step that comes is number ``at``; without it, it is one more than the last.

        For training that counts by itself and does not begin at 0. Call it before the step's first forward pass.
        """
        self._check_open()
        if count_of(at, "at", least=0) != self._step:
            self._batch.disarm()
            self._step = at
        self._arm()

    def step(self, at: int | None = None) -> None:
        """Say that a training step is over; measures where it was a monitored one.

        ``at`` is the number of the step that is over, where the trainer counts; default: one more than the last. Where
        it is not one more than the last, call ``begin`` before the step.
        """
        self._check_open()
        if at is not None:
            self._step = count_of(at, "at", least=0)
        self._teller.step = self._step
        due = self._step % self.every == 0
        probed = self.jacobian is not None and self._step % self.jacobian.every == 0
        try:
            if due or probed:
                self._measure(due=due, probed=probed)
        finally:
            self._batch.disarm()
            self._step += 1
        self._arm()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this monitor is closed; make another one, or call step() inside its with block")

    def _arm(self) -> None:
        """Hooks for the step that comes, where it is a monitored one."""
        if self._step % self.every == 0 and self.inputs is None:
            self._teller.step = self._step
            self._batch.arm()

    # ---- measuring -----------------------------------------------------------------------------------------------

    def _measure(self, *, due: bool, probed: bool) -> None:
        entries: list[Entry] = []
        self._events = []
        if due:
            entries += self._of_probe_batch() if self.inputs is not None else self._of_training_batch()
        if probed:
            entries += self._of_jacobian()
        moment = Moment(self._step, tuple(entries), tuple(self._events))
        self._history.add(moment)
        if self._history.unwritten:
            self._teller.say(
                f"the history cannot be written ({self._history.unwritten}); it is kept in memory, and written when "
                "that succeeds again",
                "history",
            )
        else:
            self._teller.well("history")
        self._teller.log(moment)
        rung = [(alarm, collapse) for alarm in self.alarms for collapse in alarm.look(moment)]
        stop = any(alarm.action == "stop" for alarm, _ in rung)
        self.should_stop |= any_process(stop) if self.alarms else stop
        for alarm, collapse in rung:
            if callable(alarm.action):
                alarm.action(collapse)
            elif is_main():
                warnings.warn(f"rankscope: {collapse}", UserWarning, stacklevel=4)

    def _of_training_batch(self) -> list[Entry]:
        features = self._batch.features
        if features is not None:
            features.detach()
        names = self._batch.names or []
        if features is None or not (features.seen or processes() > 1):
            why = (
                "no forward pass in training mode went through the model that the monitor was given; give it the "
                "module that the training loop calls, the compiled or wrapped one where there is one, or give "
                "called='parts' where the loop calls its children"
            )
            if not self._checked:
                self._checked = True
                raise MeasurementError(f"step {self._step}: {why}")
            self._event(why)
            return []
        if not self._checked:
            check_alarms(self.alarms, self._known, names)
        self._checked = True
        merge_processes(features, names)
        return [entry for name in names for entry in self._of_layer(name, features)]

    def _of_layer(self, name: str, features: StepFeatures) -> list[Entry]:
        found = features.read(name)
        if found is None:
            self._event(features.errors[name], f"layer {name}")
        else:
            self._teller.well(f"layer {name}")
        if name in features.repeated:
            self._teller.say(
                f"layer {name} is called several times in one forward pass, and its first call is measured; add #2 to "
                "the name of its module for the second call"
            )
        return self._entries(name, found)

    def _of_probe_batch(self) -> list[Entry]:
        try:
            with torch.compiler.set_stance("force_eager"):
                profile = feature_rank(
                    self._inner,
                    self.inputs,
                    cut_points=self.cut_points if self._batch.names is None else self._batch.names,
                    reduce=self.reduce,
                    channels=self.channels,
                    memory_budget=self._memory,
                    progress=False,
                )
        except UsageError:  # a question that can never be answered
            raise
        except TROUBLE as error:
            self._event(str(error), "probe batch")
            return [entry for name in self._batch.names or () for entry in self._entries(name, None)]
        self._teller.well("probe batch")
        if self._batch.names is None:
            self._batch.names = [layer.name for layer in profile]
            check_alarms(self.alarms, self._known, self._batch.names)
        return [entry for layer in profile for entry in self._entries(layer.name, layer)]

    def _of_jacobian(self) -> list[Entry]:
        """The first process measures; every process gets the numbers, so that alarms ring in all."""
        found: tuple[list[Entry], str] = ([], "")
        if is_main() and self.jacobian is not None:
            try:
                with torch.compiler.set_stance("force_eager"):
                    found = self.jacobian.measure(self._inner, self.cut_points), ""
            except TROUBLE as error:
                found = [], f"Jacobian rank: {error}"
        entries, trouble = from_main(found)
        if trouble:
            self._event(trouble, "jacobian")
        else:
            self._teller.well("jacobian")
        return entries

    def _entries(self, name: str, found: LayerFeatures | None) -> list[Entry]:
        samples = 0 if found is None else found.samples
        values = [(metric, None if found is None else DIMENSIONS[metric](found)) for metric in self.metrics]
        return [Entry(name, metric, float("nan") if v is None else float(v), samples) for metric, v in values]

    def _event(self, text: str, about: str = "") -> None:
        self._events.append(text)
        self._teller.say(text, about)

    # ---- what was seen -------------------------------------------------------------------------------------------

    @property
    def loggers(self) -> tuple[Logger, ...]:
        """Where numbers go beside the history."""
        return self._teller.loggers

    @property
    def history(self) -> pd.DataFrame:
        """One row a number: step, layer, metric, value (NaN where it could not be measured), samples."""
        return self._history.table()

    @property
    def events(self) -> list[tuple[int, str]]:
        """What could not be measured, by step."""
        return [(moment.step, text) for moment in self._history.moments for text in moment.events]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the training run keeps of the monitor: the number of the next step, and the history."""
        return {
            "step": self._step,
            "should_stop": self.should_stop,
            "moments": [moment.line() for moment in self._history.moments],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: what was monitored after it is forgotten, and measured anew as training goes on.

        Raises
        ------
        UsageError
            For what is no state of a monitor.
        """
        try:
            at = count_of(state["step"], "step", least=0)
            moments = [Moment.of(line) for line in state.get("moments", ())]
            stopped = bool(state.get("should_stop", False))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"this is no state of a monitor ({type_and_line(error)})") from error
        self._batch.disarm()
        self._history.back_to(at, moments)
        self._step, self.should_stop = at, stopped
        self._replay()
        if not self._closed:
            self._arm()

    def _replay(self) -> None:
        """Let the alarms count what was seen, without ringing."""
        self.alarms = tuple(alarm.fresh() for alarm in self.alarms)
        for moment in self._history.moments:
            for alarm in self.alarms:
                alarm.look(moment)

    def close(self) -> None:
        """Remove all hooks, and let the history's file go. What was seen stays."""
        self._closed = True
        self._batch.disarm()
        self._history.close()

    def __enter__(self) -> Self:
        self._closed = False
        self._history.open()
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
