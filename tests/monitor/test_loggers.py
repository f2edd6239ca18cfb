"""Loggers of plain loops, read back with the libraries' own readers."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from watching import batches, in_tensorboard, in_wandb, mlflow_store, net, offline_wandb, train

import rankscope as rs
from rankscope.monitor import CsvLogger, MLflowLogger, TensorBoardLogger, WandbLogger

TAG = "rank/2/effective_rank"


def watched(logger):
    model = net()
    with rs.RankMonitor(model, ["2"], every=2, loggers=logger) as monitor:
        train(model, monitor, batches(5))
    return monitor.history.query("metric == 'effective_rank'")


def pairs(history):
    return list(zip(history["step"], history["value"], strict=True))


@pytest.mark.parametrize("given", ["folder", "writer"])
def test_tensorboard(tmp_path, given):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    wanted = watched(TensorBoardLogger(tmp_path if given == "folder" else SummaryWriter(str(tmp_path))))
    assert in_tensorboard(tmp_path, TAG, wanted) == wanted["step"].tolist() == [0, 2, 4]


@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_mlflow(tmp_path, store, monkeypatch):
    mlflow, uri = mlflow_store(store, tmp_path, monkeypatch)
    logger = MLflowLogger(uri)
    wanted = watched(logger)
    client = mlflow.MlflowClient(uri)
    assert [(m.step, m.value) for m in client.get_metric_history(logger.run_id, TAG)] == pairs(wanted)
    again = MLflowLogger(uri, run_id=logger.run_id)
    again.log({"x": 1.5}, 7)
    assert client.get_run(logger.run_id).data.metrics["x"] == 1.5
    assert MLflowLogger(uri).run_id != logger.run_id


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = offline_wandb(tmp_path, monkeypatch)
    with pytest.raises(rs.UsageError, match=r"no Weights & Biases run is active; call wandb.init first"):
        WandbLogger()
    with wandb.init(dir=str(tmp_path)):
        wanted = watched(WandbLogger())
    assert in_wandb(tmp_path, TAG, "rank/step") == pairs(wanted)


def test_csv_is_appended(tmp_path):
    path = tmp_path / "new" / "v.csv"
    for step in (0, 5):
        CsvLogger(path).log({"a": 1.5, "b,c": 0.1}, step)
    assert path.read_text().splitlines() == ["step,name,value", "0,a,1.5", '0,"b,c",0.1', "5,a,1.5", '5,"b,c",0.1']


@pytest.mark.parametrize("cut", [b"st", b"step,name,value\r\n0,a", b"step,name,value\r\n0,a,1.5\r\n5,a,2"])
def test_half_a_row_of_a_csv_is_dropped(tmp_path, cut):
    """After a kill: half a number would read as another number."""
    path = tmp_path / "v.csv"
    path.write_bytes(cut)
    CsvLogger(path).log({"a": 0.5}, 10)
    kept = cut.splitlines()[1:-1]
    assert path.read_bytes().splitlines() == [b"step,name,value", *kept, b"10,a,0.5"]


def test_a_csv_on_a_full_disk_keeps_whole_rows_and_goes_on(tmp_path, monkeypatch):
    path, write = tmp_path / "v.csv", os.write
    CsvLogger(path).log({"a": 1.5}, 0)

    def full(at, data):
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(at, bytes(data)[:15])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        CsvLogger(path).log({"a": 2.5, "b": 3.5, "c": 4.5}, 5)
    monkeypatch.undo()
    CsvLogger(path).log({"a": 5.5}, 10)
    assert path.read_text().splitlines() == ["step,name,value", "0,a,1.5", "10,a,5.5"]


def test_a_csv_of_another_is_not_cut(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("notes\nof mine")
    with pytest.raises(rs.OutputError, match=r"v\.csv' is no table of a CsvLogger; give another path"):
        CsvLogger(path).log({"a": 0.5}, 10)
    assert path.read_text() == "notes\nof mine"


def test_a_missing_extra_is_one_line_with_the_command_and_nothing_is_imported_before():
    script = """
import sys
import rankscope.monitor, rankscope.integrations
names = ["lightning", "wandb", "mlflow", "tensorboard"]  # torchmetrics imports transformers where it is installed
print([m for m in names if m in sys.modules])
for name in (*names, "transformers"):
    sys.modules[name] = None  # importing it fails, as where it is not installed
import rankscope.integrations.lightning, rankscope.integrations.transformers
for call in (
    rankscope.integrations.lightning.RankCallback,
    rankscope.monitor.WandbLogger,
    rankscope.monitor.MLflowLogger,
    lambda: rankscope.monitor.TensorBoardLogger("here"),
    rankscope.integrations.transformers.RankCallback,
):
    try:
        call()
    except ImportError as error:
        assert isinstance(error, rankscope.UsageError)
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    packages = ["lightning", "wandb", "mlflow", "tensorboard", "transformers"]
    lines = [f"{name} is not installed; install it with: pip install 'rankscope[{name}]'" for name in packages]
    assert done.stdout.splitlines() == ["[]", *lines]
