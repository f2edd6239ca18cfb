"""``RankCallback`` for Lightning: ranks of a network's features while a ``Trainer`` trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from rankscope._base.errors import NotInstalledError, UsageError
from rankscope.integrations.options import MonitorOptions, check_options
from rankscope.monitor import RankMonitor
from rankscope.slicing import CutPointsLike

_missing = False
try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    Callback, _missing = object, True  # type: ignore[misc,assignment,unused-ignore]

__all__ = ["RankCallback"]


class RankCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Monitors ranks in a Lightning ``Trainer`` without changing the training; values go to the trainer's loggers.

    Steps are optimiser steps (``trainer.global_step``); under manual optimisation, batches. Batches that are
    accumulated count together, and so do those of all processes. ``training_step`` may call the ``LightningModule``
    or its children one by one; names of layers are those of the ``LightningModule`` (``"net.layer1"``). Checkpoints
    keep the history and the state of the alarms. An alarm with ``action="stop"`` ends the training.

    Parameters
    ----------
    cut_points : "blocks", "all", name, glob, or a list of names and globs
        As in ``RankMonitor``; ``blocks`` and ``all`` are those of what ``training_step`` calls first.
    **options
        ``every``, ``metrics``, ``jacobian``, ``reduce``, ``channels``, ``inputs``, ``alarms``, ``path`` and
        ``memory_budget`` of ``RankMonitor``.

    Attributes
    ----------
    monitor : RankMonitor or None
        That of the last fit, with its ``history``.

    Raises
    ------
    UsageError
        For options that no monitor has; when training begins, for those that it cannot use and for a
        ``LightningModule`` that was compiled as a whole.
    NotInstalledError
        Where Lightning is missing.

    Examples
    --------
    ::

        from rankscope.integrations.lightning import RankCallback
        trainer = lightning.Trainer(callbacks=[RankCallback("net.*", every=50)])
        trainer.fit(module, loader)
        trainer.callbacks[0].monitor.history
    """

    def __init__(self, cut_points: CutPointsLike = "blocks", **options: Unpack[MonitorOptions]) -> None:
        if _missing:
            raise NotInstalledError("lightning", "lightning")
        super().__init__()
        check_options(options)
        self.cut_points, self.options = cut_points, options
        self.monitor: RankMonitor | None = None
        self._state: Mapping[str, Any] | None = None
        self._at = 0

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the state: two callbacks of one trainer have two."""
        of_probe = self.options.get("inputs") is not None
        return f"RankCallback{(self.cut_points, self.options.get('every', 100), of_probe)!r}"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._close()
        compiled = getattr(pl_module, "_compiler_ctx", None) is not None
        if compiled and self.options.get("inputs") is None:
            raise UsageError(
                "this LightningModule was compiled as a whole, so that no hook fires; compile the network in it "
                "(self.net = torch.compile(net)), or give RankCallback a probe batch as inputs"
            )
        self.monitor = RankMonitor(
            pl_module, self.cut_points, called="parts", loggers=_TrainerLoggers(trainer), **self.options
        )
        # a wrapped module is called once around training_step, which is no forward pass
        self.monitor.calls_around = int(trainer.strategy.model is not pl_module)
        if self._state is not None:
            self.monitor.load_state_dict(self._state)
            self._state = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert self.monitor is not None
        self._at = trainer.global_step
        if pl_module.automatic_optimization:
            self.monitor.begin(self._at)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.monitor is not None
        if trainer.global_step == self._at and pl_module.automatic_optimization:
            return  # gradients are still being accumulated
        self.monitor.step()
        if self.monitor.should_stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: see ``RankMonitor.state_dict``."""
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it in when training begins."""
        self._state = state_dict or None


class _TrainerLoggers:
    """Every logger of a trainer."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def log(self, values: Mapping[str, float], step: int) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(values), step=step)
