"""What ``watch(out=...)`` reuses of an earlier run, and what it measures again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import X, kinds, net, watched
from torch import nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope._base.identity import identity_of
from rankscope.monitor.watch_measures import Measured
from rankscope.monitor.watched import WatchedValue
from rankscope.monitor.watcher import Watcher


def test_what_was_measured_is_reused_for_the_same_question_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    folder.mkdir()
    for step in (1, 2, 3):
        torch.save(net(step).state_dict(), folder / f"{step}.pt")
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> rs.FeatureProfile:
        calls.append(1)
        return rs.feature_rank(*args, **options)

    monkeypatch.setattr("rankscope.monitor.watching.feature_rank", counted)

    def times(**more: Any) -> tuple[int, rs.WatchedRun]:
        calls.clear()
        found = watched(folder, out=out, **more)
        return len(calls), found

    first = times()
    assert first[0] == 3
    torch.save(net(4).state_dict(), folder / "4.pt")
    number, again = times()
    assert number == 2  # the new one, and the first of those that were kept
    assert again.steps[:3] == first[1].steps
    assert of_kind(again.facts, FactKind.READ_BACK)[0]["kept"] == 3
    os.rename(folder / "4.pt", folder / "5.pt")  # the same content under another name
    number, renamed = times()
    assert number == 1
    assert [step.step for step in renamed.steps] == [1, 2, 3, 5]
    assert times(data=X + 1)[0] == 4
    assert times(reduce="flatten")[0] == 4
    for file in sorted((out / "checkpoints").iterdir())[:2]:
        file.write_text(file.read_text().replace("0", "1", 1))
    assert of_kind(times()[1].facts, FactKind.KEPT_DAMAGED) or times()[0] == 1


class Counted:
    """Looks through ``folder`` with a measurement that always finds ``value``, and counts how often it was asked."""

    def __init__(self, folder: Path, out: Path) -> None:
        folder.mkdir()
        self.folder, self.out = folder, out
        self.value, self.calls = 2.0, 0

    def measure(self, _: nn.Module) -> Measured:
        self.calls += 1
        nan = float("nan")
        return Measured((WatchedValue("0", "effective_rank", self.value, nan, nan, 5),))

    def load(self, path: Path) -> tuple[nn.Module, tuple[()]]:
        own = net(4)
        held = torch.load(path)
        own.load_state_dict(held.get("m", held))
        return own, ()

    def look(self) -> rs.WatchedRun:
        self.calls = 0
        watcher = Watcher(self.folder, self.load, self.measure, lambda: identity_of("data"), kept=self.out)
        watcher.look()
        return watcher.record()


def test_kept_numbers_that_a_new_measurement_does_not_give_are_dropped(tmp_path: Path) -> None:
    run = Counted(tmp_path / "run", tmp_path / "out")
    for step in (1, 2):
        torch.save(net(step).state_dict(), run.folder / f"{step}.pt")
    run.look()
    run.value = 2.0 * (1 + 1e-6)  # rounding
    assert run.look().values().tolist() == [[2.0, 2.0]]
    run.value = 2.1
    found = run.look()
    assert found.values().tolist() == [[2.1, 2.1]]
    assert FactKind.KEPT_DIFFERS in kinds(found)


def test_a_network_that_this_run_has_measured_stands_in_for_none_of_an_earlier_run(tmp_path: Path) -> None:
    run = Counted(tmp_path / "run", tmp_path / "out")
    for step in (1, 2):
        torch.save(net(step).state_dict(), run.folder / f"step_{step}.pt")
    run.look()
    run.value = 2.5  # what another machine, say, would find
    for name in ("best.ckpt", "last.ckpt"):  # read before the others
        torch.save({"m": net(3).state_dict(), "global_step": 3}, run.folder / name)
    found = run.look()
    assert found.values().tolist() == [[2.5, 2.5, 2.5]]
    assert FactKind.KEPT_DIFFERS in kinds(found)
    assert FactKind.READ_BACK not in kinds(found)
    assert run.calls == 3
    # what was made before the difference was found is kept as well
    assert of_kind(run.look().facts, FactKind.READ_BACK)[0]["kept"] == 3
    assert run.calls == 1


def test_only_checkpoints_in_the_record_are_counted_as_read_back(tmp_path: Path) -> None:
    run = Counted(tmp_path / "run", tmp_path / "out")
    torch.save(net(1).state_dict(), run.folder / "step_1.pt")
    torch.save(net(1).state_dict(), run.folder / "step_2.pt")  # the same network at two steps
    first = run.look()
    assert FactKind.READ_BACK not in kinds(first)  # nothing is from an earlier run
    assert run.calls == 1
    for name, seed in (("step=5.pt", 2), ("step=5-v1.pt", 3)):  # which of them belongs to the run is open
        torch.save(net(seed).state_dict(), run.folder / name)
    run.look()
    back = of_kind(run.look().facts, FactKind.READ_BACK)[0]
    assert (back["kept"], back["total"]) == (2, 2)
