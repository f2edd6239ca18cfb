"""``watch`` against plain forward passes, autograd and NumPy at every checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import X, kinds, net, watched
from safetensors.torch import save_file
from torch import nn

import rankscope as rs
from rankscope._base.errors import DataError, ModelError, UsageError
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope._base.identity import identity_of
from rankscope.monitor.watched import WatchedStep
from rankscope.views.sentences import sentence


def effective_rank(rows: torch.Tensor) -> float:
    x = rows.detach().double().numpy()
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def test_every_kind_of_checkpoint_against_numpy_and_autograd(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"model.{k}": v for k, v in net(1).state_dict().items()}, "global_step": 30,
                "optimizer_states": [{"state": {}}]}, tmp_path / "epoch=2.ckpt")  # fmt: skip
    torch.save(net(2).state_dict(), tmp_path / "step_20.pt")
    (tmp_path / "checkpoint-10").mkdir()
    save_file(net(3).state_dict(), tmp_path / "checkpoint-10" / "model.safetensors")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(json.dumps({"global_step": 10}))
    save_file(net(4).state_dict(), tmp_path / "step_5.safetensors")
    model = net(0).train()
    before = identity_of(model), model.training
    found = watched(tmp_path, model, inputs=X[:2])
    assert (identity_of(model), model.training) == before
    assert [(step.step, step.file) for step in found.steps] == [
        (5, "step_5.safetensors"), (10, "checkpoint-10"), (20, "step_20.pt"), (30, "epoch=2.ckpt")]  # fmt: skip
    assert found.unit == "step"
    assert found.layers == ("0", "2")
    assert found.metrics == ("effective_rank", "pca_dimension", "rankme", "jacobian_rank")
    for column, seed in enumerate((4, 3, 2, 1)):
        own = net(seed)
        features = own[0](X), own(X)
        # float32 features of about 1: rounding moves a singular value by 1e-6 of the largest, a soft rank by the like
        expected = [effective_rank(rows) for rows in features]
        assert found.values("effective_rank")[:, column] == pytest.approx(expected, rel=1e-4)
        jacobians = [torch.autograd.functional.jacobian(part, X[:1])[0, :, 0] for part in (own[0], own)]
        ranks = [int(np.linalg.matrix_rank(j.double().numpy(), rtol=1e-5)) for j in jacobians]
        assert ranks == [5, seed]
        assert found.values("jacobian_rank")[:, column].tolist() == ranks
    row = found.table().query("metric == 'jacobian_rank' and layer == '2' and step == 20").iloc[0]
    assert row["lower"] <= row["value"] == row["samples"] == 2 <= row["upper"] <= 4
    assert found.facts == ()
    with pytest.raises(UsageError, match="no metric 'rank' was measured"):
        found.values("rank")
    both = rs.compare({"a": found, "b": found}, metric="jacobian_rank")
    assert [layer.values for layer in both.layers] == [(5, 5), (1, 1)]


def test_what_cannot_be_placed_or_read_is_named_and_the_rest_measured(tmp_path: Path) -> None:
    torch.save({"model": net(2).state_dict(), "step": 7}, tmp_path / "step_8.pt")
    torch.save(net(2).state_dict(), tmp_path / "best.pt")
    whole = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "step_9.pt").write_bytes(whole[: len(whole) // 2])
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "step_11.pt")
    bad = net(3).state_dict()
    bad["0.weight"][0, 0] = torch.nan
    torch.save(bad, tmp_path / "step_12.pt")
    found = watched(tmp_path)
    assert [(step.step, step.file) for step in found.steps] == [(7, "step_8.pt")]
    left = {fact["file"]: fact["reason"] for fact in of_kind(found.facts, FactKind.CHECKPOINT_LEFT_OUT)}
    assert {"step_9.pt", "step_11.pt", "step_12.pt"} == left.keys()
    assert "truncated" in left["step_9.pt"]
    assert "does not fit" in left["step_11.pt"]
    assert "NaN" in left["step_12.pt"]
    assert of_kind(found.facts, FactKind.CHECKPOINTS_WITHOUT_STEP)[0]["names"] == ("best.pt",)
    differ = of_kind(found.facts, FactKind.CHECKPOINT_STEPS_DIFFER)[0]
    assert (differ["inside"], differ["name"], differ["unit"], differ["used"]) == (7, 8, "step", 7)
    assert all(fact.caution for fact in found.facts)
    assert "step_9.pt" in str(found)


def test_the_step_that_is_used_is_said_where_file_and_name_differ(tmp_path: Path) -> None:
    torch.save({"m": net(2).state_dict(), "epoch": 0}, tmp_path / "epoch_1.pth")
    found = watched(tmp_path)
    assert (found.unit, [step.step for step in found.steps]) == ("epoch", [1])
    assert found.notes == (
        "The name of checkpoint 'epoch_1.pth' gives epoch 1, and the file holds epoch 0. Epoch 1 was used.",
    )
    (tmp_path / "epoch_1.pth").unlink()
    torch.save({"m": net(2).state_dict(), "global_step": 1000}, tmp_path / "step_2000.pth")
    found = watched(tmp_path)
    assert (found.unit, [step.step for step in found.steps]) == ("step", [1000])
    assert found.notes == (
        "The name of checkpoint 'step_2000.pth' gives step 2,000, and the file holds step 1,000. Step 1,000 was used.",
    )
    earlier = Fact(FactKind.CHECKPOINT_STEPS_DIFFER, {"file": "a.pt", "inside": 7, "name": 8})  # of an earlier version
    assert sentence(earlier).endswith("Step 7 was used.")


def test_one_step_has_one_set_of_weights_or_none(tmp_path: Path) -> None:
    torch.save({"state_dict": net(2).state_dict(), "global_step": 5}, tmp_path / "step=5.ckpt")
    torch.save({"state_dict": net(2).state_dict(), "global_step": 5, "callbacks": {"x": 1}}, tmp_path / "last.ckpt")
    torch.save({"state_dict": net(1).state_dict(), "global_step": 3}, tmp_path / "step=3.ckpt")
    found = watched(tmp_path)
    assert [step.step for step in found.steps] == [3, 5]
    assert of_kind(found.facts, FactKind.CHECKPOINTS_ALIKE)[0]["names"] == ("last.ckpt", "step=5.ckpt")
    torch.save({"state_dict": net(4).state_dict(), "global_step": 5}, tmp_path / "step=5-v1.ckpt")
    found = watched(tmp_path)
    assert [step.step for step in found.steps] == [3]
    names = of_kind(found.facts, FactKind.CHECKPOINTS_OF_ONE_STEP)[0]["names"]
    assert names == ("last.ckpt", "step=5-v1.ckpt", "step=5.ckpt")
    assert [step.step for step in watched(tmp_path, files=["step=?.ckpt"]).steps] == [3, 5]


def test_steps_that_count_other_things_are_not_put_in_one_order(tmp_path: Path) -> None:
    torch.save(net(2).state_dict(), tmp_path / "step_5.pt")
    torch.save(net(1).state_dict(), tmp_path / "epoch_9.pt")
    with pytest.raises(UsageError, match=r"'step_5\.pt' has a step by steps and 'epoch_9\.pt' has a step by epochs"):
        watched(tmp_path)
    found = watched(tmp_path, files="epoch_*")
    assert (found.unit, found.steps[0].step) == ("epoch", 9)


def test_epochs_in_files_count_where_they_are_as_fine_as_numbers_in_names(tmp_path: Path) -> None:
    for epoch in (1, 2):
        held = {"state_dict": net(epoch).state_dict(), "epoch": epoch}
        torch.save(held, tmp_path / f"checkpoint-{epoch}.pth.tar")
    torch.save({**held, "best": True}, tmp_path / "last.pth.tar")
    found = watched(tmp_path)
    assert (found.unit, [step.step for step in found.steps]) == ("epoch", [1, 2])
    assert kinds(found) == {FactKind.CHECKPOINTS_ALIKE}
    # within an epoch the number is finer
    (tmp_path / "last.pth.tar").unlink()
    torch.save({"state_dict": net(4).state_dict(), "epoch": 2}, tmp_path / "checkpoint-3.pth.tar")
    found = watched(tmp_path)
    assert (found.unit, [step.step for step in found.steps]) == ("number", [1, 2, 3])


def test_models_that_are_built_for_each_checkpoint(tmp_path: Path) -> None:
    torch.save(net(2).state_dict(), tmp_path / "1.pt")

    def build(path: Path) -> nn.Module:
        own = net(4)
        own.load_state_dict(torch.load(path))
        return own

    assert watched(tmp_path, build) == watched(tmp_path, net(3))
    with pytest.raises(UsageError, match=r"model returned OrderedDict for '1\.pt'"):
        watched(tmp_path, torch.load)
    with pytest.raises(UsageError, match="weights_key chooses"):
        watched(tmp_path, build, weights_key="ema")


def test_a_checkpoint_at_which_the_function_fails_is_left_out(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        torch.save(net(step).state_dict(), tmp_path / f"{step}.pt")
    torch.save({"model": net(2).state_dict()}, tmp_path / "2.pt")

    def build(path: Path) -> nn.Module:
        own = net(4)
        if path.name == "3.pt":
            raise KeyError("teacher")
        if path.name == "4.pt":
            raise PermissionError("not yours")
        own.load_state_dict(torch.load(path))
        return own

    found = watched(tmp_path, build)
    assert [step.step for step in found.steps] == [1]
    left = {fact["file"]: fact["reason"] for fact in of_kind(found.facts, FactKind.CHECKPOINT_LEFT_OUT)}
    assert left["2.pt"].startswith("model failed (RuntimeError: Error(s) in loading state_dict")
    assert left["3.pt"] == "model failed (KeyError: 'teacher')"
    assert left["4.pt"] == "it cannot be read (not yours)"
    with pytest.raises(ModelError, match=r"model failed \(KeyError: 'teacher'\)"):
        watched(tmp_path, build, files="3.pt")

    def full(path: Path) -> nn.Module:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):  # of no checkpoint's making
        watched(tmp_path, full)


def test_what_no_checkpoint_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no checkpoint"):
        watched(tmp_path)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "1.pt")
    with pytest.raises(ModelError, match="does not fit the model"):
        watched(tmp_path)
    shutil.move(tmp_path / "1.pt", tmp_path / "best.pt")
    with pytest.raises(DataError, match="it is unclear which step the 1 checkpoints"):
        watched(tmp_path)
    torch.save(net(2).state_dict(), tmp_path / "1.pt")
    with pytest.raises(UsageError, match="nothing to measure on"):
        watched(tmp_path, data=None)
    with pytest.raises(UsageError, match="unknown metric 'efective_rank' in metrics; did you mean 'effective_rank'"):
        watched(tmp_path, metrics=["efective_rank"])
    with pytest.raises(UsageError, match="no layer '7'"):
        watched(tmp_path, cut_points=["7"])


@pytest.mark.parametrize("metrics", [[], (), None, iter(())])
def test_without_metrics_there_is_nothing_to_measure_but_ranks(tmp_path: Path, metrics: Any) -> None:
    torch.save(net(2).state_dict(), tmp_path / "1.pt")
    with pytest.raises(UsageError, match=r"metrics is empty.*'pca_dimension'.*'rankme'.*or inputs for Jacobian ranks"):
        watched(tmp_path, metrics=metrics)
    found = watched(tmp_path, metrics=[], inputs=X[:1])
    assert found.metrics == ("jacobian_rank",)
    assert found.values().tolist() == [[5], [2]]
    with pytest.raises(UsageError, match="metrics is 3; give names"):
        watched(tmp_path, metrics=3)


def test_a_record_of_nothing_says_so() -> None:
    for steps in ((), (WatchedStep(1, "a.pt", ()),)):
        empty = rs.WatchedRun("run", "step", steps)
        for asked in (empty.values, empty.plot, empty.curves):
            with pytest.raises(UsageError, match="nothing was measured"):
                asked()
        with pytest.raises(UsageError, match="nothing was measured"):
            empty.values("rankme")
        assert str(empty).startswith(f"{len(steps)} checkpoint")


def test_figure_and_page(tmp_path: Path) -> None:
    from rankscope.monitor.watch_page import watched_page

    for step in (1, 2, 3):
        torch.save(net(4 - step).state_dict(), tmp_path / f"{step}.pt")
    found = watched(tmp_path, metrics="effective_rank")
    assert found.plot().images[0].get_array().tolist() == found.values().tolist()
    curves = found.curves("effective_rank")
    assert [line.get_ydata().tolist() for line in curves.lines] == found.values().tolist()
    assert [line.get_xdata().tolist() for line in curves.lines] == [[1, 2, 3]] * 2
    page = watched_page(found, title="Run <1>").html()
    assert "Run &lt;1&gt;" in page
    assert "The effective rank of" in page
    assert page.count("<svg") == 4  # each of two figures at two widths
