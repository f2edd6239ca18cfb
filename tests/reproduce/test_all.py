"""Several experiments in one run: what is left out, what fails, and what goes on; added networks and their weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import NET, World

from rankscope._base.errors import DataError, MeasurementError, ModelError, PartlyDoneError, UsageError
from rankscope._base.progress import Reporter
from rankscope.cli import main
from rankscope.loading import load_model
from rankscope.reproduce import EXPERIMENTS, reproduce, reproduce_all, run
from rankscope.reproduce.registry import Experiment
from rankscope.reproduce.settings import Settings

# two that take seconds, and one between them
FEW = ("fig1b", "fig1d", "table1")


class Told(Reporter):
    """Keeps the lines that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "EXPERIMENTS", {name: EXPERIMENTS[name] for name in FEW})


def options(world: World, **more: Any) -> dict[str, Any]:
    given = {"imagenet": world.images, "weights": world.weights, "networks": [world.net], "only": []}
    return {**given, "scale": "small", "device": "cpu", **more}


def broken(kind: type[Exception]) -> Experiment:
    def fail(name: str, settings: Settings) -> Any:
        settings.place.network = "net3"
        raise kind("the logit of class 0 is 0 for every sample")

    return Experiment("fig1b", "nothing", False, fail)


@pytest.mark.usefixtures("few")
def test_a_figure_without_networks_is_left_out_of_all(world: World, tmp_path: Path) -> None:
    """The weights of the others are looked for before anything is measured."""
    told, mine = Told(), world.copy(tmp_path)
    state = load_model("timm:vit_tiny_patch16_224", weights="random", num_classes=10).model.state_dict()
    given = options(mine, networks=[], only=["ViT-T"], limit=10)
    with pytest.raises(ModelError, match=r"lacks vit_tiny_patch16_224\.safetensors"):
        reproduce_all(out=tmp_path / "out", progress=told, **given)
    assert not (tmp_path / "out").exists()
    torch.save(state, mine.weights / "vit_tiny_patch16_224.pth")
    told.lines.clear()
    found = reproduce_all(out=tmp_path / "out", progress=told, **given)
    assert list(found) == ["fig1d", "table1"]
    assert told.lines == [
        "fig1b is skipped: none of its networks (GluMixer-24, ResMLP-S24) was asked for, and none was added",
        "fig1d (1 of 2): linear chain, weights N(0, 0.02)",
        "table1 (2 of 2): the networks: layers, parameters, accuracy",
        "finished: fig1d, table1",
        "skipped: fig1b, since none of its networks was asked for",
    ]


def test_one_figure_without_networks_is_refused_by_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fig4: no network is left: this experiment has ResNet-50, GluMixer-24, Swin"):
        reproduce("fig4", out=tmp_path / "out", **options(world, networks=[], only=["ViT-T"]))
    assert not (tmp_path / "out").exists()


def test_every_figure_knows_its_networks() -> None:
    assert EXPERIMENTS["fig1a"].networks == ("ResNet-18", "ResNet-50")
    assert EXPERIMENTS["fig1b"].networks == ("GluMixer-24", "ResMLP-S24")
    assert EXPERIMENTS["fig1c"].networks == ("ViT-T", "Swin-T")
    assert EXPERIMENTS["fig4"].networks == ("ResNet-50", "GluMixer-24", "Swin-T")
    assert all(EXPERIMENTS[name].networks is None for name in ("fig2", "table1", "table2"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [(MeasurementError, ""), (RuntimeError, "unexpected RuntimeError: ")],
)
@pytest.mark.usefixtures("few")
def test_a_failure_is_named_and_the_others_go_on(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[Exception],
    words: str,
) -> None:
    monkeypatch.setitem(run.EXPERIMENTS, "fig1b", broken(kind))
    message = f"fig1b, net3: {words}the logit of class 0 is 0 for every sample"
    told = Told()
    with pytest.raises(PartlyDoneError, match="fig1b") as caught:
        reproduce_all(out=tmp_path / "out", progress=told, **options(world))
    assert list(caught.value.finished) == ["fig1d", "table1"]
    assert caught.value.failed == {"fig1b": message}
    assert isinstance(caught.value.__cause__, kind)
    assert f"failed: {message}" in told.lines
    # a command prints the same as lines, then what was made, and ends with 1
    command = ["reproduce", "all", "--imagenet", world.images, "--weights", world.weights, "--networks", world.net]
    command += ["--only", "none", "--scale", "small", "--device", "cpu", "--out", tmp_path / "out"]
    assert main([str(c) for c in command]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "fig1b (1 of 3): nothing",
        f"failed: {message}",
        "fig1d (2 of 3): linear chain, weights N(0, 0.02)",
        "table1 (3 of 3): the networks: layers, parameters, accuracy",
        "finished: fig1d, table1",
        f"error: 1 of 3 experiments failed: {message}",
    ]
    assert f"in {tmp_path / 'out' / 'table1'}" in out
    assert main([str(c) for c in [*command, "--json"]]) == 1
    assert [r["name"] for r in json.loads(capsys.readouterr().out)] == ["fig1d", "table1"]


def flat(folder: Path) -> str:
    """A network whose head gives nothing but zeros for class 0."""
    file = folder / "flat.py"
    file.write_text(NET + "\n\ndef flat():\n    model = small()\n    with torch.no_grad():\n"
                    "        model[5].weight[0], model[5].bias[0] = 0, 0\n    return model\n")  # fmt: skip
    return f"{file}:flat"


def test_constant_logits_end_fig4_only_where_no_network_is_left(world: World, tmp_path: Path) -> None:
    why = "the logit of class 0 is 0 for every sample (1 such classes); remove it: nothing depends on a constant"
    with pytest.raises(DataError, match=rf"^fig4: no network is left: flat: {re.escape(why)}; give weights of trained"):
        reproduce("fig4", out=tmp_path / "out", **options(world, networks=[flat(tmp_path)]))
    found = reproduce("fig4", out=tmp_path / "out", **options(world, networks=[flat(tmp_path), world.net]))
    assert set(found.values["network"]) == {"small"}
    assert f"flat: It was left out: {why}." in found.notes
    assert [about["name"] for about in found.settings["networks"]] == ["small"]


def test_a_factory_brings_its_own_weights(world: World, tmp_path: Path) -> None:
    """Without a file of its name in the folder; with one, that one is taken. Other sources still need theirs."""
    mine = world.copy(tmp_path)
    file = tmp_path / "tiny.py"
    kept = str(mine.weights / "small.safetensors")
    file.write_text(f"{NET}\n\ndef net3():\n    from safetensors.torch import load_file\n    model = small()\n"
                    f"    model.load_state_dict(load_file({kept!r}))\n    return model\n")  # fmt: skip
    given = options(mine, networks=[f"{file}:net3", mine.net])
    found = reproduce("table1", out=tmp_path / "out", **given)
    own, theirs = found.values.to_dict("records")
    assert (own["network"], theirs["network"]) == ("net3", "small")
    assert own["top1_percent"] == theirs["top1_percent"] > 90
    note = f"net3: {str(mine.weights)!r} has no net3.safetensors (or .pth). The weights are the factory's own."
    assert note in found.notes
    assert [n for n in found.notes if "factory's own" in n] == [note]
    assert found.settings["networks"][0]["weights"] == "as tiny.py:net3 returns them"
    expected = (
        r"lacks resnet10t.safetensors \(or .pth\) for timm:resnet10t: put the files there, or drop added networks "
    )
    with pytest.raises(ModelError, match=expected + r"from networks$"):
        reproduce("table1", out=tmp_path / "two", **options(mine, networks=["timm:resnet10t"]))
    with pytest.raises(ModelError, match=r"or leave networks out with only$"):
        reproduce("table1", out=tmp_path / "two", **options(mine, networks=[], only=["ViT-T"]))
