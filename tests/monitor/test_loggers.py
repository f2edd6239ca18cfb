"""Loggers of plain loops, read back with the libraries' own readers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from watching import batches, in_tensorboard, mlflow_store, net, train

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


def log_records(content, at, block=32768):
    """Records of a LevelDB log: W&B's file format, behind a header of its own."""
    record, place = b"", 0
    while place + 7 <= len(content):
        left = block - (at + place) % block
        if left < 7:  # too short for a header
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with pytest.raises(rs.UsageError, match=r"no Weights & Biases run is active; call wandb.init first"):
        WandbLogger()
    with wandb.init(mode="offline", dir=str(tmp_path), project="p"):
        wanted = watched(WandbLogger())
    found = []
    for data in log_records(next(tmp_path.rglob("*.wandb")).read_bytes()[7:], 7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            if TAG in row:
                found.append((row["rank/step"], row[TAG]))
    assert found == pairs(wanted)


def test_csv_is_appended(tmp_path):
    path = tmp_path / "new" / "v.csv"
    for step in (0, 5):
        CsvLogger(path).log({"a": 1.5, "b,c": 0.1}, step)
    assert path.read_text().splitlines() == ["step,name,value", "0,a,1.5", '0,"b,c",0.1', "5,a,1.5", '5,"b,c",0.1']


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
