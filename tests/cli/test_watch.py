"""``rankscope watch``: the digits network over training, a run that is followed, and every refusal in one line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rankscope.cli import main
from rankscope.demo.digits_network import digits_network

SMALL = ("--data", "digits", "--limit", 40, "--cut-points", "layer3.1,fc", "--metrics", "effective_rank")


def save(folder: Path, step: int, seed: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    model = digits_network("random", seed=seed) if seed else digits_network()
    torch.save({"state_dict": model.state_dict(), "global_step": step}, folder / f"step={step}.ckpt")


def run(*command: object) -> int:
    return main(["watch", *map(str, command)])


def test_a_run_as_table_figure_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, seed in ((0, 1), (20, 0)):
        save(tmp_path / "run", step, seed)
    given = (tmp_path / "run", "--model", "digits", "--out", tmp_path / "out")
    assert run(*given, *SMALL, "--images", "digits") == 0
    said = capsys.readouterr().out
    assert "2 checkpoints (steps 0 to 20), 2 layers." in said
    assert "Jacobian rank" in said
    found = json.loads((tmp_path / "out" / "watch.json").read_text())
    assert [step["step"] for step in found["steps"]] == [0, 20]
    assert (found["provenance"]["model"], found["provenance"]["data"]) == ("digits", "digits")
    # the trained network is the one that rankscope features measures
    command = ("features", "digits", "--reduce", "pool", "--out", tmp_path / "f", *SMALL[:-2], "--json")
    assert main([*map(str, command)]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    values = [v["value"] for v in found["steps"][1]["values"] if v["metric"] == "effective_rank"]
    assert values == [layer["effective_rank"] for layer in layers]
    for name in ("watch.csv", "watch.png", "watch.svg", "curves.png", "curves.svg", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 400
    assert run(*given, *SMALL, "--images", "digits", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["steps"] == found["steps"]
    assert "read back from an earlier run" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_is_followed_until_it_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    folder.mkdir()
    steps: list[list[int]] = []

    def half() -> None:
        save(folder, 20)
        file = folder / "step=20.ckpt"
        whole.append(file.read_bytes())
        file.write_bytes(whole[0][:5000])

    def finish() -> None:
        (folder / "step=20.ckpt").write_bytes(whole[0])

    def stop() -> None:
        raise KeyboardInterrupt

    whole: list[bytes] = []
    between: list[Callable[[], None]] = [lambda: save(folder, 10, seed=1), half, finish, stop]

    def sleep(_: float) -> None:
        written = out / "watch.json"
        steps.append([s["step"] for s in json.loads(written.read_text())["steps"]] if written.exists() else [])
        between.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)
    assert run(folder, "--model", "digits", "--out", out, *SMALL, "--follow") == 130
    assert steps == [[], [10], [10], [10, 20]]
    said = capsys.readouterr()
    assert said.out == ""
    assert "holds no checkpoint" in said.err
    assert "'step=20.ckpt' was left out" in said.err
    assert "interrupted: 2 checkpoints are kept in" in said.err
    # nothing new for so long: it ends by itself
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert run(folder, "--model", "digits", "--out", out, *SMALL, "--follow", "--patience", 0) == 0


@pytest.mark.parametrize("more", [("--images", "digits"), ()])
def test_a_run_that_removes_its_first_checkpoint_goes_on(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankscope.cli.watched_network import WatchedNetwork

    for step in (1, 2, 3):
        save(tmp_path / "run", step, step)
    read: list[str] = []
    load = WatchedNetwork.load

    def loaded_and_removed(self: WatchedNetwork, path: Path) -> object:
        read.append(path.name)
        found = load(self, path)
        if path.name == "step=1.ckpt":
            path.unlink()
        return found

    monkeypatch.setattr(WatchedNetwork, "load", loaded_and_removed)
    assert run(tmp_path / "run", "--model", "digits", "--out", tmp_path / "out", *SMALL, *more) == 0
    assert read == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]
    found = json.loads((tmp_path / "out" / "watch.json").read_text())
    assert [step["step"] for step in found["steps"]] == [2, 3]


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, text: str, *command: object) -> None:
        assert run(*command, "--model", "digits", "--out", tmp_path / "out") == code
        said = capsys.readouterr().err
        assert text in said
        assert said.count("\n") == 1

    refused(1, "there is no folder", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused(1, "holds no checkpoint", tmp_path / "empty")
    save(tmp_path / "run", 1)
    refused(2, "--patience 3 belongs to --follow", tmp_path / "run", "--patience", 3)
    refused(2, "did you mean 'rankme'", tmp_path / "run", "--metrics", "rankm")
    refused(1, "there is no --data 'nowhere'", tmp_path / "run", "--data", "nowhere")
    refused(1, "there is no --data 'nowhere'", tmp_path / "run", "--data", "nowhere", "--follow")
    refused(2, "'layer9'", tmp_path / "run", *SMALL[:4], "--cut-points", "layer9")
    torch.save({"weight": torch.ones(2, 2), "global_step": 1}, tmp_path / "empty" / "a.pt")
    refused(1, "does not fit the model", tmp_path / "empty")
    save(tmp_path / "run", 2)
    torch.save(digits_network().state_dict(), tmp_path / "run" / "epoch3.pt")
    refused(2, "choose with --files", tmp_path / "run", *SMALL)
