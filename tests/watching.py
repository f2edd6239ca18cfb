"""Small networks, the NumPy numbers that a monitor's are held to, and what loggers have kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def net(width=6, out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, out))


def hooks(model):
    return sum(len(getattr(m, name)) for m in model.modules() for name in HOOKS)


def batches(count, samples=16, width=6):
    return torch.randn(count, samples, width, generator=torch.Generator().manual_seed(1))


def train(model, monitor, data, *, called=None):
    """Plain SGD steps, each reported to the monitor."""
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for x in data:
        loss = (called or model)(x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        monitor.step()


def rankme(rows):
    """exp of the entropy of σ/‖σ‖₁ + 1e-7, rows not centred (Garrido et al. 2023)."""
    sigma = np.linalg.svd(np.asarray(rows, np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def effective_rank(rows):
    """exp of the entropy of σ/‖σ‖₁, rows centred (Roy and Vetterli 2007)."""
    rows = np.asarray(rows, np.float64)
    sigma = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


ORACLE = {"rankme": rankme, "effective_rank": effective_rank}
# eigenvalues of the scatter are off by d·eps64 of the largest, σ by the root of that where it is smallest: 1e-7 of σ_1,
# which moves an entropy over eight of them by less than 1e-5
RTOL = 1e-5


def expect(history, step, layer, rows):
    """Both default metrics of one layer at one step against NumPy on the rows."""
    here = history[(history["step"] == step) & (history["layer"] == layer)].set_index("metric")
    assert set(here.index) == set(ORACLE)
    assert (here["samples"] == len(rows)).all()
    for name, of in ORACLE.items():
        np.testing.assert_allclose(here.loc[name, "value"], of(rows), rtol=RTOL)


def in_tensorboard(folder, tag, wanted):
    """Steps of a tag in TensorBoard's event files, whose values are those of a history's rows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.Scalars(tag)
    np.testing.assert_allclose([e.value for e in found], wanted["value"], rtol=1e-6)  # TensorBoard keeps float32
    return [e.step for e in found]


def mlflow_store(kind, folder, monkeypatch):
    """MLflow and the address of a new store, of ``"files"`` or of ``"sqlite"``; skips where it is not there."""
    mlflow = pytest.importorskip("mlflow")
    if kind == "sqlite":
        pytest.importorskip("alembic", reason="the SQLite store of MLflow needs alembic, which mlflow-skinny lacks")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow, f"sqlite:///{folder}/m.db" if kind == "sqlite" else (folder / "runs").as_uri()


def same_numbers(one, two, steps):
    """Two histories as lines, of one process and of several with parts of the same batches."""
    assert [m["step"] for m in one] == [m["step"] for m in two] == steps
    for a, b in zip(one, two, strict=True):
        assert [(v["layer"], v["metric"], v["samples"]) for v in a["values"]] == [
            (v["layer"], v["metric"], v["samples"]) for v in b["values"]
        ]
        # sums of gradients in another order: some eps32 on each weight
        np.testing.assert_allclose([v["value"] for v in b["values"]], [v["value"] for v in a["values"]], rtol=1e-4)


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


def offline_wandb(folder, monkeypatch):
    """Weights & Biases, kept to an offline run in this folder; skips where it is not installed."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(folder), "PROJECT": "p"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    return wandb


def in_wandb(folder, tag, at):
    """What the one offline run in a folder has under ``tag``: pairs with what it has under ``at`` beside it."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in log_records(next(folder.rglob("*.wandb")).read_bytes()[7:], 7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            if tag in row:
                found.append((row[at], row[tag]))
    return found
