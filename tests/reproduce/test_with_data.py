"""The experiments that need images and weights, on a small folder and local checkpoints."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.table import Table
from safetensors.numpy import load_file
from small_world import EACH, World

from rankscope._base.errors import OutputError
from rankscope._base.frames import Frame
from rankscope.cli import main
from rankscope.deficit import independence_deficit
from rankscope.features import classification_dimension, find_head
from rankscope.features.fingerprint import model_fingerprint
from rankscope.jacobian import jacobian_rank
from rankscope.loading import load_images, load_model
from rankscope.reproduce import Reproduction, reproduce, reproduce_all
from rankscope.slicing import Patch

DATA = ("fig1a", "fig1b", "fig1c", "fig2", "fig4", "table1", "table2")


def options(world: World, **more: Any) -> dict[str, Any]:
    return {
        "imagenet": world.images,
        "weights": world.weights,
        "networks": [world.net],
        "only": [],
        "scale": "small",
        "device": "cpu",
        **more,
    }


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file() and "parts" not in f.relative_to(folder).parts
    }


def all_files(folder: Path) -> dict[str, bytes]:
    """The kept parts too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def everything(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Reproduction]]:
    out = tmp_path_factory.mktemp("all")
    return out, reproduce_all(out=out, **options(world))


@pytest.fixture(scope="module")
def direct(world: World) -> dict[str, Any]:
    """The network run plainly over the folder: features, logits, labels, head, images."""
    loaded = load_model(world.net, weights=world.weights / "small.safetensors", num_classes=10)
    data = load_images(world.images, preprocessing=loaded.preprocessing)
    head = find_head(loaded.model)[1]
    seen: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        logits = loaded.model(data.tensor)
    handle.remove()  # a hook is part of what a model is
    return {
        "model": loaded.model,
        "loaded": loaded,
        "features": seen[0],
        "logits": logits,
        "labels": torch.tensor(data.labels),
        "head": head,
    }


def test_all_writes_every_folder(everything: tuple[Path, dict[str, Reproduction]]) -> None:
    out, found = everything
    assert list(found) == [*DATA[:3], "fig1d", "fig1e", "fig1f", "fig2", "fig3", "fig4", "table1", "table2"]
    for name in found:
        for file in (f"{name}.pdf", f"{name}.png", f"{name}.csv", f"{name}.json", "comparison.csv", "comparison.md"):
            assert (out / name / file).stat().st_size > 100, (name, file)
    # what they share is measured once
    kept = [p.name for p in (out / "parts" / "small").iterdir()]
    assert sorted(kept) == [
        "clsdim", "collection", "deficit-largest-eta", "deficit-paper", "deficit-reference", "layers-blocks",
        "rank-image", "rank-zero",
    ]  # fmt: skip


def test_partial_ranks_are_those_of_jacobian_rank(
    everything: tuple[Path, dict[str, Reproduction]], world: World, direct: dict[str, Any]
) -> None:
    _, found = everything
    drawn = load_images(world.images, preprocessing=direct["loaded"].preprocessing, limit=2, seed=0)
    assert found["fig1a"].settings["networks"][0]["images"] == tuple(drawn.names)
    for convention, background in (("paper", "image"), ("reference", "zero")):
        profile = jacobian_rank(
            direct["model"],
            drawn.tensor,
            columns=Patch(8),
            background="image" if background == "image" else "zero",
            tolerance=convention,
        )
        rows = found["fig1b"].values
        rows = rows[rows["as_printed"] == convention]
        # the authors' code has the mean over the images
        mean = tuple(float(np.mean([e.value for e in la.estimates(profile.tolerance)])) for la in profile.layers)
        assert tuple(rows["rank"]) == (profile.function_rank if convention == "paper" else mean)
        assert list(rows["layer"]) == [layer.name for layer in profile.layers]
        smallest = [min(e.value for e in layer.estimates(profile.tolerance)) for layer in profile.layers]
        assert list(rows["min"]) == smallest


def test_the_zero_background_is_really_measured(
    everything: tuple[Path, dict[str, Reproduction]], world: World, direct: dict[str, Any]
) -> None:
    """The kept spectra are those of the image, and of the image with zeros around the patch; the two differ."""
    out, found = everything
    drawn = load_images(world.images, preprocessing=direct["loaded"].preprocessing, limit=2, seed=0)
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[12:20, 12:20] = False
    blank = drawn.tensor[:1].clone()
    blank[..., outside] = 0
    kept = {}
    for name, image in (("image", drawn.tensor[:1]), ("zero", blank)):
        images = out / "parts" / "small" / f"rank-{name}" / "images"
        kept[name] = load_file(images / "image-000000.safetensors")["3.sigma"]
        oracle = torch.func.jacrev(direct["model"])(image)[0, :, 0][:, :, ~outside].flatten(1)
        exact = torch.linalg.svdvals(oracle.detach().double()).numpy()
        # float32 Jacobians agree to some 1e-6 of the largest value
        np.testing.assert_allclose(kept[name][:10], exact, atol=1e-5 * exact[0])
    assert np.abs(kept["image"] - kept["zero"]).max() > 1e-3 * kept["image"].max()
    # singular values over six decades: the two tolerances must tell
    ranks = found["fig1a"].values.groupby("as_printed")["rank"]
    assert (ranks.get_group("reference").to_numpy() < ranks.get_group("paper").to_numpy()).any()
    last = found["fig1a"].values.groupby("as_printed")["rank"].last()
    at = found["fig1a"].values["layer"].iloc[-1]
    assert f"small {last['paper']:g} at {at} against {last['reference']:g} at {at}." in found["fig1a"].disagreement


def test_classification_dimension_is_that_of_the_plain_run(
    everything: tuple[Path, dict[str, Reproduction]], direct: dict[str, Any]
) -> None:
    plain = classification_dimension(
        direct["features"], direct["labels"], direct["head"], allow_absent=True, bootstrap=0
    )
    row = everything[1]["table2"].values.iloc[0]
    assert (row["classification_dimension"], row["ambient"]) == (plain.dimension, 24)
    curve = everything[1]["fig2"].values
    assert list(curve["k"]) == list(range(1, 25))
    # one image of 40 may change sides with the order of a float32 sum
    np.testing.assert_allclose(curve["top1"], plain.curve, atol=1.01 / 40)
    kept = curve["top1"] / plain.full_accuracy
    assert int(curve["k"][np.flatnonzero(kept >= 0.95)[0]]) == plain.dimension


def test_the_networks_table(everything: tuple[Path, dict[str, Reproduction]], direct: dict[str, Any]) -> None:
    row = everything[1]["table1"].values.iloc[0]
    right = float((direct["logits"].argmax(1) == direct["labels"]).double().mean())
    assert row["top1_percent"] == pytest.approx(100 * right, abs=1e-9)
    assert right > 0.9
    assert row["parameters_millions"] == sum(p.numel() for p in direct["model"].parameters()) / 1e6
    assert row["layers"] == len(everything[1]["fig1a"].values) / 2
    assert row["images"] == 10 * EACH
    (table,) = [child for child in everything[1]["table1"].plot().get_children() if isinstance(child, Table)]
    heads = ["architecture", "network", "activation", "parameters (M)", "main block", "layers", "top-1 (%)"]
    assert [table[0, k].get_text().get_text() for k in range(7)] == heads
    assert table[1, 5].get_text().get_text() == f"{row['layers']}\n(–)"  # the paper has no number of this network
    # the blocks call relu as a function, the stem has it as a module; two blocks lie in a container
    assert (row["activation"], row["main_block"]) == ("ReLU", "Sequential")


def test_deficit_is_that_of_the_plain_run(
    everything: tuple[Path, dict[str, Reproduction]], direct: dict[str, Any]
) -> None:
    values = everything[1]["fig4"].values
    for convention, name, eta in (
        ("paper", "all", 20.0),
        ("reference", "reference", 20.0),
        ("largest-eta", "all", None),
    ):
        table = independence_deficit(
            direct["logits"], direct["labels"], eta=eta, samples_used=name, permutations=1, feature_dimension=24
        )
        rows = values[values["as_printed"] == convention]
        assert list(rows["n_dependencies"]) == [r.n_dependencies for r in table]
        np.testing.assert_allclose(rows["r2_uncentred"], [r.r2_uncentred for r in table], atol=1e-5)


def test_a_second_run_gives_the_same_numbers(
    everything: tuple[Path, dict[str, Reproduction]], world: World, tmp_path: Path
) -> None:
    for name in ("fig1c", "table2"):
        reproduce(name, out=tmp_path / name, **options(world))
        assert files(tmp_path / name) == files(everything[0] / name)


@pytest.mark.parametrize(("name", "at"), [("fig4", "small"), ("fig1c", "small, zero")])
def test_interrupted_and_started_again_gives_the_same_bytes(
    everything: tuple[Path, dict[str, Reproduction]], world: World, tmp_path: Path, name: str, at: str
) -> None:
    """Stopped in the pass over the folder, and between two images of the second sweep."""

    def stop(done: int, _: int | None, text: str) -> None:
        if text == at and done >= 1:
            raise KeyboardInterrupt("stopped here")

    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        reproduce(name, out=tmp_path, progress=stop, **options(world))
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("result.json")}
    assert files(tmp_path) == {}
    assert len(kept) == (1 if name == "fig1c" else 0)
    reproduce(name, out=tmp_path, **options(world))
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    assert files(tmp_path) == files(everything[0] / name)
    # measured alone and without a stop: every part as well, to the byte
    reproduce(name, out=tmp_path / "whole", **options(world))
    whole = all_files(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    assert all_files(tmp_path) == whole


def test_stopped_after_the_last_image_still_gives_the_same_bytes(
    everything: tuple[Path, dict[str, Reproduction]], world: World, tmp_path: Path
) -> None:
    """All spectra are kept and the result is not yet written: the method and the checks are told as before."""
    reproduce("fig1a", out=tmp_path, **options(world))
    (tmp_path / "parts" / "small" / "rank-image" / "result.json").unlink()
    reproduce("fig1a", out=tmp_path, **options(world))
    assert files(tmp_path) == files(everything[0] / "fig1a")


@pytest.mark.parametrize(
    ("name", "more", "what"),
    [
        ("table1", {"seed": 1}, "seed 0, now 1"),
        ("table2", {"limit": 30}, "limit None, now 30"),
        ("fig1a", {"images": 3}, "images 2, now 3"),
    ],
)
def test_parts_of_other_settings_are_refused(
    world: World, tmp_path: Path, name: str, more: dict[str, int], what: str
) -> None:
    reproduce(name, out=tmp_path, **options(world))
    with pytest.raises(OutputError, match=rf"parts/small/.* was measured with {what}; give another out, or delete"):
        reproduce(name, out=tmp_path, **options(world, **more))


def test_another_network_joins_without_measuring_the_first_again(world: World, tmp_path: Path) -> None:
    reproduce("table2", out=tmp_path, **options(world))
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "parts").rglob("*") if f.is_file()}
    found = reproduce("table2", out=tmp_path, **options(world, networks=[world.net, "timm:test_vit"]))
    assert list(found.values["network"]) == ["small", "timm:test_vit"]
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    # timm's own preprocessing of that network, as its configuration says
    about = found.settings["networks"][1]
    assert "crop 160×160" in about["preprocessing"]
    assert "file test_vit.safetensors" in about["weights"]


def test_a_network_of_the_paper_from_a_local_file(world: World, tmp_path: Path) -> None:
    """ViT-T in its own architecture with ten classes: its 13 layers, its 5.7 million parameters less the head's."""
    world = world.copy(tmp_path)
    torch.save(
        load_model("timm:vit_tiny_patch16_224", weights="random", num_classes=10).model.state_dict(),
        world.weights / "vit_tiny_patch16_224-mine.pth",
    )
    found = reproduce("table1", out=tmp_path / "out", **options(world, networks=[], only=["vit-t"], limit=10))
    row = found.values.iloc[0]
    assert (row["network"], row["layers"], row["paper_layers"], row["images"]) == ("ViT-T", 13, 13, 10)
    assert (row["architecture"], row["activation"], row["main_block"]) == ("Transformer", "GELU", "Block")
    assert (row["paper_activation"], row["paper_main_block"], row["paper_top1_percent"]) == ("GELU", "ViT-Block", 75.5)
    assert (row["parameters_millions"], row["paper_parameters_millions"]) == (pytest.approx(5.5, abs=0.1), 5.7)
    assert row["parameters_millions"] == pytest.approx((5_717_416 - 990 * 193) / 1e6)
    compared = {c.quantity: (c.paper, c.ours) for c in found.comparison}
    assert compared["ViT-T: layers"] == (13, 13)
    assert compared["ViT-T: parameters (M)"][0] == 5.7
    why = {c.quantity: c.why for c in found.comparison}
    assert why["ViT-T: parameters (M)"] == "other data: its head has 10 classes here, the paper's 1,000"
    assert why["ViT-T: top-1 (%)"] == "other data: the 10 class folders are not ImageNet's 1,000"
    assert why["ViT-T: layers"] == "the paper prints how many, not which"


def test_the_record_has_every_setting(
    everything: tuple[Path, dict[str, Reproduction]], world: World, direct: dict[str, Any], tmp_path: Path
) -> None:
    """What decides the numbers: data type, patch and where it lies, tolerance, and digests of the weights."""
    out, found = everything
    file = world.weights / "small.safetensors"
    for name in DATA:
        record = json.loads((out / name / f"{name}.json").read_text())["settings"]
        (about,) = record["networks"]
        assert about["weights_file"] == str(file)
        assert about["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert about["weights_fingerprint"] == model_fingerprint(direct["model"])
        assert (about["dtype"], about["input_size"]) == ("float32", [3, 32, 32])
    record = json.loads((out / "fig1a" / "fig1a.json").read_text())["settings"]
    assert (record["patch"], record["tolerance"], record["threshold"]) == (8, "paper", "σ ≥ eps32·min(d, K)·σ₁")
    assert (record["background"], record["networks"][0]["patch_rows"]) == ("image", [12, 20])
    inside = {divmod(int(c) % (32 * 32), 32) for c in Patch(8).coordinates((3, 32, 32))}
    rows, columns = ([min(v), max(v) + 1] for v in zip(*inside, strict=True))
    assert [rows, columns] == [record["networks"][0][f"patch_{side}"] for side in ("rows", "columns")]
    assert found["fig2"].settings["bootstrap"] == 20
    assert found["fig4"].settings["tolerance"] == independence_deficit(direct["logits"], direct["labels"], eta=20.0).tol
    # no --weights, and no pretrained ones either: the factory's own
    own = reproduce("table1", out=tmp_path, **options(world, weights=None))
    assert own.settings["weights"] is None
    about = own.settings["networks"][0]
    assert (about["weights"], about["weights_file"]) == ("as net.py:small returns them", None)
    assert about["weights_sha256"] is None
    assert about["weights_fingerprint"] != model_fingerprint(direct["model"])


def test_bars_have_whole_layers_whiskers_that_show_and_a_title_of_their_own(
    everything: tuple[Path, dict[str, Reproduction]],
) -> None:
    found = everything[1]["fig1a"]
    assert found.title.endswith(", added networks")
    index = np.arange(1, 20)
    rows = {"network": "ResNet-50", "as_printed": "paper", "index": index, "rank": 100 - index, "min": 100 - index}
    same = pd.DataFrame(rows)
    one = same.assign(min=np.where(index == 4, 90, same["min"]))
    both = pd.concat([same, one.assign(network="mine")])
    for values, title, whiskers in ((same, "ResNets", []), (one, "ResNets", [4]), (both, "ResNets and added net", [4])):
        ax = replace(found, numbers=Frame.of(values)).plot()
        assert ax.get_title(loc="left").startswith(f"(a) {title}")
        assert ax.get_xlabel().startswith(f"the i-th layer of {title}")
        ax.figure.canvas.draw()
        assert len(ax.get_xticks()) > 3
        assert all(tick == int(tick) for tick in ax.get_xticks())
        bars = [c for c in ax.collections if isinstance(c, LineCollection)]
        drawn = [segment for c in bars for segment in c.get_segments()]
        assert [round(float(segment[0][0])) for segment in drawn] == whiskers
        assert all(abs(segment[1][1] - segment[0][1]) > 0 for segment in drawn)


def test_reasons_are_those_of_the_data_and_the_network(everything: tuple[Path, dict[str, Reproduction]]) -> None:
    """The folder is not ImageNet's and the network was added: neither rounding nor another decoder is why."""
    given = "added by the user, so the paper has no number for it"
    for name, found in everything[1].items():
        for c in found.comparison:
            if c.quantity.startswith("small"):
                assert c.why.startswith((given, "at this η no other class")), (name, c)
    whys = {c.quantity: c.why for c in everything[1]["table1"].comparison}
    assert whys["small: top-1 (%)"] == f"{given}; other data: the 10 class folders are not ImageNet's 1,000"
    assert whys["small: layers"] == given


def test_from_the_command_line(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["reproduce", "table2", "--imagenet", world.images, "--weights", world.weights, "--networks", world.net]
    given += ["--only", "none", "--scale", "small", "--out", tmp_path]
    assert main([str(g) for g in given]) == 0
    text = capsys.readouterr().out
    assert "small: classification dimension" in text
    assert f"in {tmp_path}" in text
    assert main([str(g) for g in [*given, "--json", "--as", "reference"]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["name"], record["as_printed"]) == ("table2", "reference")
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert rows[0]["quantity"] == "small: classification dimension"
    assert main(["reproduce", "fig2"]) == 2
    assert capsys.readouterr().err.startswith("error: fig2: --imagenet DIR is needed: fetch")
