"""Rank while a network trains: the monitor, its alarms, its loggers."""

from rankscope.monitor.alarm import Collapse, CollapseAlarm
from rankscope.monitor.jacobian_probe import JacobianProbe
from rankscope.monitor.loggers import CsvLogger, Logger, MLflowLogger, TensorBoardLogger, WandbLogger
from rankscope.monitor.rank_monitor import RankMonitor
from rankscope.monitor.watched import WatchedRun, WatchedStep, WatchedValue
from rankscope.monitor.watching import watch

__all__ = [
    "Collapse",
    "CollapseAlarm",
    "CsvLogger",
    "JacobianProbe",
    "Logger",
    "MLflowLogger",
    "RankMonitor",
    "TensorBoardLogger",
    "WandbLogger",
    "WatchedRun",
    "WatchedStep",
    "WatchedValue",
    "watch",
]
