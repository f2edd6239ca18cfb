"""A Hugging Face ``Trainer`` with the callback and without: numbers, training, checkpoints, loggers, processes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from watching import expect, hooks, in_tensorboard, in_wandb, mlflow_store, net, offline_wandb, same_numbers

import rankscope as rs

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="the Trainer of Transformers needs accelerate")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]

from transformers import Trainer, TrainingArguments  # noqa: E402

from rankscope.integrations.transformers import RankCallback  # noqa: E402


class Model(nn.Module):
    """Takes named inputs, labels first, and keeps what the monitor should have seen."""

    def __init__(self):
        super().__init__()
        self.net, self.drop, self.kept = net(), nn.Dropout(0.2), []

    def forward(self, labels=None, x=None):
        out = self.net(self.drop(x))
        if self.training:
            self.kept.append(out.detach().clone())
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


def data(samples=48):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(3))
    return [{"labels": i % 3, "x": row} for i, row in enumerate(x)]


def trainer_of(folder, *callbacks, epochs=2, model=None, report_to=(), **options):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=12,
        logging_steps=2,
        lr_scheduler_type="constant",  # a schedule depends on where the training is to end
        use_cpu=True,
        disable_tqdm=True,
        report_to=list(report_to),
        **{"save_strategy": "no", "eval_strategy": "epoch", **options},
    )
    return Trainer(
        Model() if model is None else model,
        arguments,
        train_dataset=data(),
        eval_dataset=data(12),
        callbacks=list(callbacks),
    )


def test_numbers_and_training(tmp_path):
    plain = trainer_of(tmp_path / "a")
    plain.train()
    callback = RankCallback(["net.2"], every=3)
    watched = trainer_of(tmp_path / "b", callback)
    watched.train()
    for a, b in zip(plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    losses = [[(e["step"], e["loss"]) for e in t.state.log_history if "loss" in e] for t in (plain, watched)]
    assert losses[0] == losses[1]
    history = callback.monitor.history
    assert history["step"].unique().tolist() == [0, 3, 6]
    for step in (0, 3, 6):
        expect(history, step, "net.2", watched.model.kept[step])
    assert hooks(watched.model) == 0
    logged = [(e["step"], e["rank/net.2/rankme"]) for e in watched.state.log_history if "rank/net.2/rankme" in e]
    wanted = history.query("metric == 'rankme'")
    assert logged == list(zip(wanted["step"], wanted["value"], strict=True))


def test_accumulated_batches_are_one_step(tmp_path):
    callback = RankCallback(["net.2"], every=1)
    trainer = trainer_of(tmp_path, callback, epochs=1, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert callback.monitor.history["step"].unique().tolist() == [0, 1]
    expect(callback.monitor.history, 1, "net.2", torch.cat(trainer.model.kept[2:]))


def test_globs_are_looked_up_in_the_first_batch(tmp_path):
    callback = RankCallback("net.?", every=5)
    trainer_of(tmp_path, callback, epochs=1).train()
    assert callback.monitor.history["layer"].unique().tolist() == ["net.0", "net.1", "net.2"]


def test_an_alarm_stops_the_trainer(tmp_path):
    alarm = rs.CollapseAlarm("rankme", below=100.0, patience=2, action="stop")
    trainer = trainer_of(tmp_path, RankCallback(["net.2"], every=1, alarms=alarm))
    with pytest.warns(UserWarning, match=r"rankme of 'net.2' is .* at step 1"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("where", ["there", "moved"])
def test_interrupted_and_resumed(tmp_path, where):
    whole = RankCallback(["net.2"], every=3)
    trainer_of(tmp_path / "a", whole).train()
    first = RankCallback(["net.2"], every=3)
    trainer_of(tmp_path / "b", first, epochs=2, max_steps=4, save_strategy="steps", save_steps=4).train()
    folder = tmp_path / "b"
    if where == "moved":  # a checkpoint alone, in the run of another
        (tmp_path / "c").mkdir()
        (folder / "checkpoint-4").rename(tmp_path / "c" / "checkpoint-4")
        folder = tmp_path / "c"
    second = RankCallback(["net.2"], every=3)
    trainer = trainer_of(folder, second)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert trainer.state.global_step == 8
    assert second.monitor.history["step"].unique().tolist() == [0, 3, 6]
    assert second.monitor.history.query("step < 4").equals(whole.monitor.history.query("step < 4"))
    expect(second.monitor.history, 6, "net.2", trainer.model.kept[2])
    kept = [json.loads(line)["step"] for line in (folder / "rank_history.jsonl").read_text().splitlines()]
    assert kept == [0, 3, 6]


def test_a_second_training_begins_anew(tmp_path):
    callback = RankCallback(["net.2"], every=3)
    for _ in range(2):
        trainer_of(tmp_path, callback, epochs=1).train()
        assert callback.monitor.history["step"].unique().tolist() == [0, 3]


def test_a_training_that_broke_off_leaves_its_hooks_to_the_next(tmp_path):
    class Breaks(Model):
        def forward(self, labels=None, x=None):
            super().forward(labels, x)
            raise ZeroDivisionError("in training")

    model, callback = Breaks(), RankCallback(["net.2"], every=1)
    with pytest.raises(ZeroDivisionError, match="in training"):
        trainer_of(tmp_path, callback, model=model).train()
    trainer_of(tmp_path, callback, epochs=1).train()
    assert hooks(model) == 0


def test_the_loggers_of_a_trainer_that_it_is_attached_to(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trainer = trainer_of(tmp_path / "run", report_to=["tensorboard"])
    callback = RankCallback(["net.2"], every=2).attach(trainer)
    assert callback.attach(trainer) is callback
    trainer.train()
    file = next(tmp_path.rglob("events.out.tfevents.*"))
    events = EventAccumulator(str(file.parent))
    events.Reload()
    tag = next(t for t in events.Tags()["scalars"] if t.endswith("rank/net.2/rankme"))
    wanted = callback.monitor.history.query("metric == 'rankme'")
    assert wanted["step"].tolist() == [0, 2, 4, 6]
    in_tensorboard(file.parent, tag, wanted)
    at = next(t for t in events.Tags()["scalars"] if t.endswith("rank/step"))
    assert [e.value for e in events.Scalars(at)] == [0, 2, 4, 6]
    losses = [e for e in trainer.state.log_history if "loss" in e]
    assert [e["step"] for e in losses] == [2, 4, 6, 8]  # the trainer's own log is as it was


def test_wandb_gets_the_numbers_through_the_trainer(tmp_path, monkeypatch):
    wandb = offline_wandb(tmp_path, monkeypatch)
    trainer = trainer_of(tmp_path / "run", report_to=["wandb"])
    callback = RankCallback(["net.2"], every=2).attach(trainer)
    with wandb.init(dir=str(tmp_path)):  # which the trainer goes on with; its own would take an earlier test's folder
        trainer.train()
    wanted = callback.monitor.history.query("metric == 'rankme'")
    assert wanted["step"].tolist() == [0, 2, 4, 6]
    # transformers puts train/ in front of what is neither eval_ nor test_
    found = in_wandb(tmp_path, "train/rank/net.2/rankme", "train/rank/step")
    assert found == list(zip(wanted["step"], wanted["value"], strict=True))


@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_mlflow_gets_the_numbers_through_the_trainer(tmp_path, store, monkeypatch):
    mlflow, uri = mlflow_store(store, tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    monkeypatch.chdir(tmp_path)
    trainer = trainer_of(tmp_path / "run", report_to=["mlflow"])
    callback = RankCallback(["net.2"], every=2).attach(trainer)
    try:
        trainer.train()
        run = mlflow.last_active_run().info.run_id
    finally:
        mlflow.end_run()
    found = mlflow.MlflowClient(uri).get_metric_history(run, "rank/net.2/rankme")
    wanted = callback.monitor.history.query("metric == 'rankme'")
    assert wanted["step"].tolist() == [0, 2, 4, 6]
    assert [m.value for m in found] == wanted["value"].tolist()


def test_one_that_is_not_attached_says_where_its_numbers_go(tmp_path):
    callback = RankCallback(["net.2"])
    trainer = trainer_of(tmp_path, callback, epochs=1, report_to=[])
    trainer.args.report_to = ["wandb"]
    with pytest.warns(UserWarning, match=r"and not to wandb; register the callback with RankCallback\(…\).attach"):
        trainer.train()


def test_a_compiled_model_needs_the_trainer(tmp_path):
    trainer = trainer_of(tmp_path, RankCallback(["net.2"]))
    trainer.args.torch_compile = True
    with pytest.raises(rs.UsageError, match=r"the trainer compiles the model"):
        trainer.train()


@pytest.mark.parametrize(("options", "match"), [({"evry": 2}, "no option 'evry'"), ({"called": "whole"}, "'called'")])
def test_an_option_that_no_callback_has(options, match):
    with pytest.raises(rs.UsageError, match=match):
        RankCallback(**options)


def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch):
    """Two ranks with halves of each batch, against one process with the whole of it."""
    script = textwrap.dedent(
        """
        import sys, warnings; warnings.simplefilter("ignore")
        import torch
        from torch import nn
        from transformers import Trainer, TrainingArguments
        from rankscope.integrations.transformers import RankCallback
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            def forward(self, x=None, labels=None):
                return {"loss": self.net(x).square().mean()}
        class InOrder(Trainer):
            def _get_train_sampler(self, *_):
                return torch.utils.data.SequentialSampler(self.train_dataset)
        x = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))
        processes, folder = int(sys.argv[1]), sys.argv[2]
        arguments = TrainingArguments(folder, num_train_epochs=2, per_device_train_batch_size=24 // processes,
            use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True)
        InOrder(Model(), arguments, train_dataset=[{"x": r, "labels": 0} for r in x],
            callbacks=[RankCallback(["net.0", "net.2"], every=2)]).train()
        """
    )
    file = tmp_path / "run.py"
    file.write_text(script)
    tables = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        arguments = [str(file), str(processes), str(folder)]
        if processes == 1:
            monkeypatch.setattr(sys, "argv", arguments)
            runpy.run_path(str(file))
        else:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            done = subprocess.run(
                [*launch, *arguments],
                capture_output=True,
                text=True,
                timeout=300,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            )
            assert done.returncode == 0, done.stderr[-3000:]
        lines = Path(folder / "rank_history.jsonl").read_text().splitlines()
        tables.append([json.loads(line) for line in lines])
    same_numbers(*tables, [0, 2])
