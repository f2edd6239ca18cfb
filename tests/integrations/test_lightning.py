"""A Lightning ``Trainer`` with the callback and without: numbers, training, checkpoints, loggers, processes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watching import expect, hooks, in_tensorboard, in_wandb, mlflow_store, net, offline_wandb, same_numbers

import rankscope as rs

lightning = pytest.importorskip("lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|lightning).*"),
]

from rankscope.integrations.lightning import RankCallback  # noqa: E402


def loader(samples=48, batch=12):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x, torch.arange(samples) % 3), batch_size=batch)


class Module(lightning.LightningModule):
    """Calls its network, or its parts one by one, and keeps what the monitor should have seen."""

    def __init__(self, way="forward"):
        super().__init__()
        self.net, self.drop, self.way, self.kept = net(), nn.Dropout(0.2), way, []
        self.automatic_optimization = way != "manual"

    def forward(self, x):
        return self.net(self.drop(x))

    def training_step(self, batch, _):
        x, y = batch
        out = self.net(self.drop(x)) if self.way == "parts" else self(x)
        self.kept.append(out.detach().clone())
        loss = nn.functional.cross_entropy(out, y)
        if self.way == "manual":
            optimiser = self.optimizers()
            optimiser.zero_grad()
            self.manual_backward(loss)
            optimiser.step()
        return loss

    def validation_step(self, batch, _):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def fit(tmp_path, *callbacks, way="forward", module=None, epochs=2, resume=None, **options):
    torch.manual_seed(0)
    module = Module(way) if module is None else module
    settings = {"logger": False, "enable_checkpointing": False, **options}
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    return module, trainer


@pytest.mark.parametrize("way", ["forward", "parts", "manual"])
def test_numbers_and_training(tmp_path, way):
    plain, _ = fit(tmp_path, way=way)
    callback = RankCallback(["net.2"], every=3)
    watched, _ = fit(tmp_path, callback, way=way)
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    history = callback.monitor.history
    assert history["step"].unique().tolist() == [0, 3, 6]
    for step in (0, 3, 6):
        expect(history, step, "net.2", watched.kept[step])
    assert hooks(watched) == 0


def test_accumulated_batches_are_one_step(tmp_path):
    callback = RankCallback(["net.2"], every=1)
    module, trainer = fit(tmp_path, callback, epochs=1, accumulate_grad_batches=2)
    assert trainer.global_step == 2
    assert callback.monitor.history["step"].unique().tolist() == [0, 1]
    expect(callback.monitor.history, 1, "net.2", torch.cat(module.kept[2:]))


def test_blocks_and_globs_have_the_names_of_the_module(tmp_path):
    callback = RankCallback("net.?", every=5)
    fit(tmp_path, callback, epochs=1)
    assert callback.monitor.history["layer"].unique().tolist() == ["net.0", "net.1", "net.2"]


def test_an_alarm_stops_the_trainer(tmp_path):
    alarm = rs.CollapseAlarm("rankme", below=100.0, patience=2, action="stop")
    with pytest.warns(UserWarning, match=r"rankme of 'net.2' is .* at step 1"):
        _, trainer = fit(tmp_path, RankCallback(["net.2"], every=1, alarms=alarm))
    assert trainer.global_step == 2


def test_interrupted_and_resumed(tmp_path):
    whole = RankCallback(["net.2"], every=2)
    fit(tmp_path / "a", whole, epochs=2)
    first = RankCallback(["net.2"], every=2)
    _, trainer = fit(tmp_path / "b", first, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    second = RankCallback(["net.2"], every=2)
    resumed, _ = fit(tmp_path / "b", second, epochs=2, resume=tmp_path / "one.ckpt")
    assert second.monitor.history["step"].unique().tolist() == [0, 2, 4, 6]
    before = second.monitor.history.query("step < 4")
    assert before.equals(whole.monitor.history.query("step < 4"))
    for i, step in enumerate((4, 6)):
        expect(second.monitor.history, step, "net.2", resumed.kept[2 * i])


def test_hooks_are_gone_after_an_exception(tmp_path):
    class Breaks(Module):
        def training_step(self, batch, index):
            super().training_step(batch, index)
            raise ZeroDivisionError("in training")

    module = Breaks()
    callback = RankCallback(["net.2"], every=1, path=tmp_path / "h")
    with pytest.raises(ZeroDivisionError, match="in training"):
        fit(tmp_path, callback, module=module)
    assert hooks(module) == 0
    rs.RankMonitor(net(), ["0"], path=tmp_path / "h").close()  # the file is free


def test_several_fits_and_several_callbacks(tmp_path):
    one, two = RankCallback(["net.0"], every=2), RankCallback(["net.2"], every=3)
    assert one.state_key != two.state_key
    for _ in range(2):
        fit(tmp_path, one, two, epochs=1)
        assert one.monitor.history["step"].unique().tolist() == [0, 2]
        assert two.monitor.history["step"].unique().tolist() == [0, 3]


@pytest.mark.parametrize(("options", "match"), [({"evry": 2}, "no option 'evry'"), ({"loggers": []}, "'loggers'")])
def test_an_option_that_no_monitor_has(options, match):
    with pytest.raises(rs.UsageError, match=match):
        RankCallback(**options)


def test_a_module_that_was_compiled_as_a_whole_is_refused(tmp_path):
    with pytest.raises(rs.UsageError, match="was compiled as a whole"):
        fit(tmp_path, RankCallback(["net.2"]), module=torch.compile(Module(), backend="eager"))


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    callback = RankCallback(["net.2"], every=2)
    fit(tmp_path, callback, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    wanted = callback.monitor.history.query("metric == 'rankme'")
    found = in_tensorboard(tmp_path / "run", "rank/net.2/rankme", wanted)
    assert found == wanted["step"].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_mlflow_gets_the_numbers(tmp_path, store, monkeypatch):
    mlflow, uri = mlflow_store(store, tmp_path, monkeypatch)
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger("e", tracking_uri=uri, artifact_location=str(tmp_path))
    callback = RankCallback(["net.2"], every=4)
    fit(tmp_path, callback, logger=logger)
    found = mlflow.MlflowClient(uri).get_metric_history(logger.run_id, "rank/net.2/effective_rank")
    wanted = callback.monitor.history.query("metric == 'effective_rank'")
    assert [(m.step, m.value) for m in found] == list(zip(wanted["step"], wanted["value"], strict=True))


def test_wandb_gets_the_numbers(tmp_path, monkeypatch):
    wandb = offline_wandb(tmp_path, monkeypatch)
    from lightning.pytorch.loggers import WandbLogger

    callback = RankCallback(["net.2"], every=2)
    fit(tmp_path, callback, logger=WandbLogger(save_dir=str(tmp_path), offline=True))
    wandb.finish()
    wanted = callback.monitor.history.query("metric == 'rankme'")
    assert wanted["step"].tolist() == [0, 2, 4, 6]
    found = in_wandb(tmp_path, "rank/net.2/rankme", "trainer/global_step")
    assert found == list(zip(wanted["step"], wanted["value"], strict=True))


def test_two_processes_give_the_numbers_of_one(tmp_path):
    """Two ranks with halves of each batch, against one process with the whole of it."""
    script = textwrap.dedent(
        """
        import sys, warnings; warnings.simplefilter("ignore")
        import torch, lightning
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset
        from rankscope.integrations.lightning import RankCallback
        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            def training_step(self, batch, _):
                return self.net(batch[0]).square().mean()
            def train_dataloader(self):
                x = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))
                rank, processes = self.trainer.global_rank, self.trainer.world_size
                return DataLoader(TensorDataset(x[rank::processes]), batch_size=24 // processes)
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 0.1)
        def main(processes, path):
            trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", devices=processes, logger=False,
                strategy="ddp" if processes > 1 else "auto", enable_progress_bar=False, enable_model_summary=False,
                enable_checkpointing=False, use_distributed_sampler=False,
                callbacks=[RankCallback(["net.0", "net.2"], every=2, path=path)])
            trainer.fit(Module())
        if __name__ == "__main__":
            main(int(sys.argv[1]), sys.argv[2])
        """
    )
    file = tmp_path / "run.py"
    file.write_text(script)
    tables = []
    for processes in (1, 2):
        path = tmp_path / f"h{processes}"
        if processes == 1:
            runpy.run_path(str(file))["main"](1, path)
        else:  # Lightning starts the script a second time
            done = subprocess.run(
                [sys.executable, str(file), "2", str(path)],
                capture_output=True,
                text=True,
                timeout=300,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            )
            assert done.returncode == 0, done.stderr[-3000:]
        tables.append([json.loads(line) for line in path.read_text().splitlines()])
    same_numbers(*tables, [0, 2])
