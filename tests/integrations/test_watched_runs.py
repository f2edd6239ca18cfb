"""Checkpoints as a Lightning ``Trainer`` and a Hugging Face ``Trainer`` save them, read through ``watch``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watching import net

import rankscope as rs

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|lightning|pin_memory).*"),
]
X = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
Y = torch.arange(24) % 3


def participation(rows: torch.Tensor) -> float:
    values = np.linalg.eigvalsh(np.cov(rows.double().numpy().T))
    return float(values.sum() ** 2 / (values**2).sum())


def expect(found: rs.WatchedRun, seen: dict[int, nn.Module]) -> None:
    """``found`` has the numbers of the networks that training had at these steps."""
    assert found.unit == "step"
    assert [step.step for step in found.steps] == sorted(seen)
    with torch.no_grad():
        expected = [participation(seen[step](X)) for step in sorted(seen)]
    # float32 forward passes of another batch: 1e-6 of each feature
    assert found.values()[-1] == pytest.approx(expected, rel=1e-4)


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    seen: dict[int, nn.Module] = {}

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.example = net(), net()

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
            seen[self.global_step] = net()
            seen[self.global_step].load_state_dict(self.net.state_dict())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.05)

    kept = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, save_last=True)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, callbacks=[kept], default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(Module(), DataLoader(TensorDataset(X, Y), batch_size=6))
    assert len(seen) == 4
    # two networks of the module fit: the one that is meant has a name
    options = {"cut_points": "all", "metrics": "participation_ratio", "progress": False}
    found = rs.watch(tmp_path, net(), X, weights_key="state_dict.net", **options)
    expect(found, seen)
    alike = [fact["names"] for fact in found.facts if fact.kind is rs.FactKind.CHECKPOINTS_ALIKE]
    assert alike == [("epoch=1-step=8.ckpt", "last.ckpt")]
    with pytest.raises(rs.UsageError, match=r"choose one with weights_key"):
        rs.watch(tmp_path, net(), X, **options)


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="the Trainer of Transformers needs accelerate")
    seen: dict[int, nn.Module] = {}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, labels: torch.Tensor | None = None, x: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            out = self.net(x)
            return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}

    class Keep(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_save(self, args: object, state: object, control: object, model: Model, **_: object) -> None:
            seen[state.global_step] = net()  # type: ignore[attr-defined]
            seen[state.global_step].load_state_dict(model.net.state_dict())  # type: ignore[attr-defined]

    torch.manual_seed(0)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=6, save_strategy="steps",
        save_steps=3, learning_rate=0.05, use_cpu=True, disable_tqdm=True, report_to=[],
    )  # fmt: skip
    data = [{"labels": int(y), "x": x} for x, y in zip(X, Y, strict=True)]
    trainer = transformers.Trainer(Model(), arguments, train_dataset=data, callbacks=[Keep()])
    trainer.train()
    trainer.save_model(str(tmp_path))  # the last weights, beside the checkpoints
    assert set(seen) == {3, 6, 8}
    found = rs.watch(tmp_path, net(), X, cut_points="all", metrics="participation_ratio", progress=False)
    expect(found, seen)
    left = [fact["names"] for fact in found.facts if fact.kind is rs.FactKind.CHECKPOINTS_WITHOUT_STEP]
    assert left == [("model.safetensors",)]
