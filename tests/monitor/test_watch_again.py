"""Folders of checkpoints that change between two looks of a watcher."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from checkpoints import net
from torch import nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope._base.identity import identity_of
from rankscope.monitor.watch_measures import Measured
from rankscope.monitor.watched import WatchedValue
from rankscope.monitor.watcher import Watcher


class Folder:
    """A run that goes on between two looks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loaded: list[str] = []
        self.watcher = Watcher(path, self.load, self.measure, lambda: identity_of(0))

    def load(self, path: Path) -> tuple[nn.Module, tuple[()]]:
        self.loaded.append(path.name)
        own = net(4)
        rs.loading.load_weights(own, path)
        return own, ()

    def measure(self, model: nn.Module) -> Measured:
        nan = float("nan")
        rank = float(np.linalg.matrix_rank(model.get_parameter("2.weight").detach().numpy()))
        return Measured((WatchedValue("2", "rank", rank, nan, nan, 1),))

    def save(self, name: str, seed: int, step: int | None = None) -> None:
        held = net(seed).state_dict() if step is None else {"m": net(seed).state_dict(), "global_step": step}
        torch.save(held, self.path / name)

    def look(self) -> dict[int, float]:
        self.loaded.clear()
        self.watcher.look()
        return {step.step: step.values[0].value for step in self.watcher.record().steps}


def test_a_checkpoint_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    run.save("last.ckpt", 4, step=1)
    assert run.look() == {1: 4}
    assert not run.watcher.look()
    run.save("last.ckpt", 3, step=2)  # the trainer overwrites it: what was measured of it stays
    run.save("step=0.ckpt", 2)
    assert run.look() == {0: 2, 1: 4, 2: 3}
    assert sorted(run.loaded) == ["last.ckpt", "step=0.ckpt"]
    assert of_kind(run.watcher.record().facts, FactKind.CHECKPOINTS_GONE)[0]["names"] == ("last.ckpt",)
    (tmp_path / "step=0.ckpt").unlink()
    assert run.look() == {0: 2, 1: 4, 2: 3}
    assert run.loaded == []
    # training begins again: what was saved after that step, and is gone, belongs to the earlier run
    run.save("last.ckpt", 1, step=1)
    assert run.look() == {0: 2, 1: 1}


def test_half_a_file_is_left_out_until_it_is_whole(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    run.save("1.pt", 3)
    run.save("2.pt", 2)
    whole = (tmp_path / "2.pt").read_bytes()
    for size in (0, 10, len(whole) - 1):
        (tmp_path / "2.pt").write_bytes(whole[:size])
        assert run.look() == {1: 3}
        assert of_kind(run.watcher.record().facts, FactKind.CHECKPOINT_LEFT_OUT)[0]["file"] == "2.pt"
    (tmp_path / "2.pt").write_bytes(whole)
    assert run.look() == {1: 3, 2: 2}
    assert run.watcher.record().facts == ()


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    run.save("1.pt", 3)
    run.save("2.pt", 1)
    plain = run.load

    def writing(path: Path) -> tuple[nn.Module, tuple[()]]:
        found = plain(path)
        if path.name == "2.pt" and len(run.loaded) == 2:
            run.save("2.pt", 2)
            os.utime(tmp_path / "2.pt", ns=(1, 1))
        return found

    run.watcher._load = writing
    assert run.look() == {1: 3}
    assert run.look() == {1: 3, 2: 2}


def test_a_name_that_others_explain_later_is_measured_then(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    run.save("resnet18_1.pt", 3)
    run.save("5.pt", 1)
    assert run.look() == {5: 1}
    assert run.loaded == ["5.pt"]
    run.save("resnet18_2.pt", 2)
    assert run.look() == {1: 3, 2: 2, 5: 1}


def test_a_name_that_others_put_in_doubt_later_is_named(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    run.save("epoch0_step9.pt", 3)
    run.save("step_4.pt", 1)
    assert run.look() == {4: 1, 9: 3}
    run.save("epoch1_step5.pt", 2)  # steps begin again, and two of one epoch have no order
    run.save("epoch1_step6.pt", 4)
    assert run.look() == {4: 1}
    names = of_kind(run.watcher.record().facts, FactKind.CHECKPOINTS_WITHOUT_STEP)[0]["names"]
    assert names == ("epoch0_step9.pt", "epoch1_step5.pt", "epoch1_step6.pt")
