"""Which step a checkpoint belongs to, and which files of a folder are checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankscope._base.errors import DataError, ModelError
from rankscope.monitor.checkpoint_files import checkpoints_in, signature_of
from rankscope.monitor.checkpoint_steps import Step, step_in_file, steps_in_names


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [
        ("epoch=3-step=1200.ckpt", 1200, "step"),
        ("epoch=3-step=1200-v1.ckpt", 1200, "step"),
        ("global_step5000.pt", 5000, "step"),
        ("checkpoint-500", 500, "step"),
        ("model_iter_0040.pth", 40, "iteration"),
        ("iteration-40.pt", 40, "iteration"),
        ("net_epoch12.pth.tar", 12, "epoch"),
        ("ckpt_7.safetensors", 7, "number"),
        ("checkpoint-7.pth.tar", 7, "number"),
        ("0012.pt", 12, "number"),
        ("epoch=3-val_loss=0.52.ckpt", 3, "epoch"),
        ("epoch3best.pt", 3, "epoch"),
        ("llama-7B-1000.pt", 1000, "number"),
        ("lr1e-3_step_20.pt", 20, "step"),
    ],
)
def test_a_name_says_its_step(name: str, value: int, unit: str) -> None:
    assert steps_in_names([name]) == {name: Step(value, unit)}


@pytest.mark.parametrize(
    "name",
    [
        "last.ckpt",
        "resnet18_a2.pt",
        "step_3_step_4.pt",
        "20261127-093000-1.pt",
        "run-1234567890123456789.pt",
        "resnet18_best.pt",
        "best_v2.pt",
        "step_1k.pt",
        "step_1.5k.pt",
        "checkpoint-1k",
        "step_1e3.pt",
        "step_1,500.pt",
        "step-1.5",
        "iter_2M.pth",
        "loss_0.51.pt",
    ],
)
def test_a_name_that_leaves_it_open_has_none(name: str) -> None:
    assert steps_in_names([name]) == {}


def test_names_of_one_form_tell_each_other_which_number_counts() -> None:
    found = steps_in_names(["resnet18_a2.pt", "resnet18_a10.pt", "vit16_1.pt", "best.pt"])
    assert found == {"resnet18_a2.pt": Step(2, "number"), "resnet18_a10.pt": Step(10, "number")}
    assert steps_in_names(["a1_1.pt", "a2_2.pt"]) == {}


def test_a_number_of_the_network_is_no_step() -> None:
    found = steps_in_names(["model_1.pt", "model_2.pt", "resnet18_best.pt", "model_10k.pt", "vit16-ema.pt"])
    assert found == {"model_1.pt": Step(1, "number"), "model_2.pt": Step(2, "number")}
    assert steps_in_names(["a_0.51.pt", "a_0.49.pt"]) == {}  # losses, say
    assert steps_in_names(["a_7_0.51.pt", "a_9_0.49.pt"])["a_9_0.49.pt"] == Step(9, "number")


def test_steps_that_begin_again_with_each_epoch_leave_the_order_to_the_epoch() -> None:
    on = ["epoch0_step900.pt", "epoch1_step1000.pt", "epoch1_step1900.pt"]
    assert [step.value for step in steps_in_names(on).values()] == [900, 1000, 1900]
    again = ["epoch0_step900.pt", "epoch1_step100.pt", "epoch2_step50.pt"]
    assert list(steps_in_names(again).values()) == [Step(0, "epoch"), Step(1, "epoch"), Step(2, "epoch")]
    assert steps_in_names(["epoch0_iter9.pt", "epoch1_iter9.pt"])["epoch1_iter9.pt"] == Step(1, "epoch")
    several = [*again, "epoch2_step60.pt", "step_7.pt"]
    assert steps_in_names(several) == {"step_7.pt": Step(7, "step")}


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"global_step": 7, "step": 3, "epoch": 1}, Step(7, "step")),
        ({"step": 3, "epoch": 1}, Step(3, "step")),
        ({"epoch": 1}, Step(1, "epoch")),
        ({"global_step": True}, None),
        ({"global_step": -1}, None),
        ({"step": torch.tensor(3)}, None),  # a buffer of the network
        ({}, None),
    ],
)
def test_a_file_says_its_step(tmp_path: Path, held: dict[str, object], expected: Step | None) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, **held}, tmp_path / "any.pt")
    assert step_in_file(tmp_path / "any.pt") == expected


def test_a_folder_says_its_step(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert step_in_file(tmp_path / "model.safetensors") is None
    assert step_in_file(tmp_path) is None
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 40, "epoch": 1.5}))
    assert step_in_file(tmp_path) == Step(40, "step")
    for text, match in (
        ("{", "cannot be read"),
        ('{"global_step": 1.5}', "which is no step"),
        ("[]", "cannot be read"),
    ):
        (tmp_path / "trainer_state.json").write_text(text)
        with pytest.raises(ModelError, match=match):
            step_in_file(tmp_path)


def names(found: list[Path]) -> list[str]:
    return [path.name for path in found]


def test_files_and_folders_that_hold_weights_count(tmp_path: Path) -> None:
    for name in ("b.ckpt", "a.PT", "c.pth", "d.safetensors", "notes.txt", "training_args.bin", ".hidden.pt",
                 "model-00001-of-00002.safetensors", "e.ckpt.part", "f.pth.tar", "g.tar"):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
    for name, inside in (("checkpoint-5", "model.safetensors"), ("epoch_1", "pytorch_model.bin.index.json"),
                         ("logs", "events.txt"), ("checkpoint-9", "optimizer.pt")):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).write_bytes(b"x")
    assert names(checkpoints_in(tmp_path)) == [
        "a.PT",
        "b.ckpt",
        "c.pth",
        "checkpoint-5",
        "d.safetensors",
        "epoch_1",
        "f.pth.tar",
    ]
    assert names(checkpoints_in(tmp_path, ("*.ckpt", "checkpoint-*"))) == ["b.ckpt", "checkpoint-5"]


def test_one_folder_below_may_hold_them_and_several_are_several_runs(tmp_path: Path) -> None:
    inner = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    inner.mkdir(parents=True)
    assert checkpoints_in(tmp_path) == []
    (inner / "a.ckpt").write_bytes(b"x")
    assert checkpoints_in(tmp_path) == [inner / "a.ckpt"]
    (tmp_path / "lightning_logs" / "version_1").mkdir()
    (tmp_path / "lightning_logs" / "version_1" / "b.ckpt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"checkpoints in 2 folders .*version_0.*version_1.*give one of them"):
        checkpoints_in(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        checkpoints_in(tmp_path / "none")


def test_a_signature_changes_with_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(b"x")
    first = signature_of(file)
    assert signature_of(file) == first
    file.write_bytes(b"xy")
    assert signature_of(file) != first
    assert signature_of(tmp_path / "gone.pt") == ()
