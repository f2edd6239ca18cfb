"""``RankCallback`` for Hugging Face Transformers: ranks of a network's features while a ``Trainer`` trains it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, Unpack

from rankscope._base.errors import NotInstalledError, OutputError, UsageError
from rankscope._base.json_files import read_json, write_json
from rankscope.integrations.options import MonitorOptions, check_options
from rankscope.monitor import RankMonitor
from rankscope.monitor.history import OF_TRAINERS
from rankscope.monitor.merging import is_main
from rankscope.slicing import CutPointsLike

_missing = False
try:
    from transformers import TrainerCallback
except ImportError:
    TrainerCallback, _missing = object, True  # type: ignore[misc,assignment,unused-ignore]

__all__ = ["RankCallback"]

_STATE = "rankscope_monitor.json"


class RankCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Monitors ranks in a Hugging Face ``Trainer``; the training is the same as without it.

    Steps are those of ``state.global_step``. Batches that are accumulated count together, and so do those of all
    processes. The history is kept in ``output_dir/rank_history.jsonl`` and in each checkpoint's folder, so that
    ``resume_from_checkpoint`` continues it. An alarm with ``action="stop"`` ends the training.

    A callback that was handed to ``Trainer(callbacks=…)`` writes into ``state.log_history``. ``attach(trainer)``
    registers it so that values go through ``trainer.log`` to TensorBoard, Weights & Biases, MLflow and all others of
    ``report_to`` too.

    Parameters
    ----------
    cut_points : "blocks", "all", name, glob, or a list of names and globs
        As in ``RankMonitor``.
    **options
        ``every``, ``metrics``, ``jacobian``, ``reduce``, ``channels``, ``inputs``, ``alarms``, ``path`` and
        ``memory_budget`` of ``RankMonitor``.

    Attributes
    ----------
    monitor : RankMonitor or None
        That of the last training, with its ``history``.

    Raises
    ------
    UsageError
        For options that no monitor has; when training begins, for those that it cannot use, and for a compiled model
        of a trainer that the callback is not attached to.
    NotInstalledError
        Where Transformers are missing.

    Examples
    --------
    ::

        from rankscope.integrations.transformers import RankCallback
        trainer = transformers.Trainer(model, arguments, train_dataset=data)
        callback = RankCallback(every=50).attach(trainer)
        trainer.train()
        callback.monitor.history
    """

    def __init__(self, cut_points: CutPointsLike = "blocks", **options: Unpack[MonitorOptions]) -> None:
        if _missing:
            raise NotInstalledError("transformers", "transformers")
        check_options(options)
        self.cut_points, self.options = cut_points, options
        self.monitor: RankMonitor | None = None
        self.trainer: Any = None

    def attach(self, trainer: Any) -> Self:
        """Register with a trainer, and log through it."""
        self.trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._close()
        if self.trainer is not None:
            model = self.trainer.model_wrapped
        elif args.torch_compile and self.options.get("inputs") is None:
            raise UsageError(
                "the trainer compiles the model, so that no hook fires; call RankCallback(…).attach(trainer), or give "
                "a probe batch as inputs"
            )
        options = dict(self.options)
        if options.get("path") is None:
            options["path"] = Path(args.output_dir) / OF_TRAINERS
        log = _Log(self.trainer, args, state, control)
        self.monitor = RankMonitor(model, self.cut_points, loggers=log, **options)  # type: ignore[arg-type]
        kept = self._kept(args, state)
        if kept.is_file():
            self.monitor.load_state_dict(read_json(kept))
        self.monitor.begin(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.monitor is not None:
            self.monitor.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.monitor is None:
            return
        self.monitor.step()
        if self.monitor.should_stop:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kept = self._kept(args, state)
        if self.monitor is not None and is_main() and kept.parent.is_dir():
            try:
                write_json(kept, self.monitor.state_dict())
            except OutputError as error:
                warnings.warn(f"rankscope: the checkpoint is without the monitor ({error})", UserWarning, stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()

    def _kept(self, args: Any, state: Any) -> Path:
        resumed = args.resume_from_checkpoint
        if isinstance(resumed, str) and Path(resumed).name == f"checkpoint-{state.global_step}":
            return Path(resumed) / _STATE
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _STATE


class _Log:
    """The trainer's own log where it is known, else the history of logs in its state."""

    def __init__(self, trainer: Any, args: Any, state: Any, control: Any) -> None:
        self.trainer, self.state, self.control = trainer, state, control
        if trainer is None and args.report_to and is_main():
            warnings.warn(
                f"rankscope: ranks go to the trainer's log_history alone, and not to {', '.join(args.report_to)}; "
                "register the callback with RankCallback(…).attach(trainer)",
                UserWarning,
                stacklevel=5,
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.trainer is None:
            self.state.log_history.append({**values, "epoch": self.state.epoch, "step": step})
            return
        # logging takes back that the trainer's own log is due in this step
        due = self.trainer.control.should_log
        self.trainer.log({**values, "rank/step": float(step)})
        self.trainer.control.should_log = due
