"""Where a monitor's numbers go beside its own history: TensorBoard, Weights & Biases, MLflow, a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rankscope._base.checks import path_of
from rankscope._base.errors import NotInstalledError, OutputError, UsageError
from rankscope._base.files import append_whole

__all__ = ["CsvLogger", "Logger", "MLflowLogger", "TensorBoardLogger", "WandbLogger"]

_HEADER = ("step", "name", "value")
_HEADER_LINE = ",".join(_HEADER).encode()


@runtime_checkable
class Logger(Protocol):
    """Anything with this method is a logger."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take in numbers by name, such as ``rank/layer1.0/effective_rank``."""


class TensorBoardLogger:
    """Scalars of a TensorBoard event file.

    Parameters
    ----------
    to : path or SummaryWriter
        A folder, or a writer of your own.
    """

    def __init__(self, to: Any) -> None:
        if hasattr(to, "add_scalar"):
            self.writer = to
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise NotInstalledError("tensorboard", "tensorboard") from None
        self.writer = SummaryWriter(str(path_of(to, "to")))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


class WandbLogger:
    """The history of a Weights & Biases run: the given one, or the one that is active."""

    def __init__(self, run: Any = None) -> None:
        if run is None:
            try:
                import wandb
            except ImportError:
                raise NotInstalledError("wandb", "wandb") from None
            run = wandb.run
            if run is None:
                raise UsageError("no Weights & Biases run is active; call wandb.init first, or pass the run")
        self.run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        # as a value: W&B's own step counts calls of log, and refuses one that falls
        self.run.log({**values, "rank/step": step})


class MLflowLogger:
    """Metrics of an MLflow run.

    Parameters
    ----------
    tracking_uri : str, optional
        A server, ``sqlite:///…`` or a folder; default: MLflow's own.
    run_id : str, optional
        Default: the active run, else a new one.
    experiment : str
        The experiment of a new run.
    """

    def __init__(self, tracking_uri: str | None = None, *, run_id: str | None = None, experiment: str = "rankscope"):
        try:
            import mlflow
        except ImportError:
            raise NotInstalledError("mlflow", "mlflow") from None
        self.client: Any = mlflow.MlflowClient(tracking_uri)
        active = mlflow.active_run()
        if run_id is None and active is not None and tracking_uri is None:
            run_id = active.info.run_id
        if run_id is None:
            known = self.client.get_experiment_by_name(experiment)
            place = known.experiment_id if known is not None else self.client.create_experiment(experiment)
            run_id = self.client.create_run(place).info.run_id
        self.run_id = run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=step)


class CsvLogger:
    """A CSV file with the columns step, name and value; appended, whole rows only."""

    def __init__(self, path: str | Path) -> None:
        self.path = path_of(path, "path")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with io.FileIO(self.path, "a+b") as file:
            start = _end_of_rows(file)
            rows = io.StringIO(newline="")
            writer = csv.writer(rows)
            if not start:
                writer.writerow(_HEADER)
            writer.writerows([step, name, value] for name, value in values.items())
            append_whole(file.fileno(), rows.getvalue().encode(), start)


def _end_of_rows(file: io.FileIO) -> int:
    """Where the next row goes. Of a row that a kill has cut half a number may be left, which would read as another."""
    end = file.seek(0, io.SEEK_END)
    file.seek(max(end - 1, 0))
    if not end or file.read(1) == b"\n":
        return end
    file.seek(0)
    content = file.read()
    if not content.startswith(_HEADER_LINE[: len(content)]):
        raise OutputError(f"{str(file.name)!r} is no table of a CsvLogger; give another path")
    end = content.rfind(b"\n") + 1
    file.truncate(end)
    return end
