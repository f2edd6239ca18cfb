"""collect, features, clsdim and deficit from the command line, on the network and the digits that ship."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rankscope.cli import main
from rankscope.demo.digits_network import digits_network, digits_split
from rankscope.features import Collection


def run(*args: object) -> int:
    return main([str(a) for a in args])


def refused(capsys: pytest.CaptureFixture[str], code: int, text: str, *args: object) -> None:
    assert run(*args) == code
    err = capsys.readouterr().err
    assert re.search(text, err), err
    assert err.count("\n") == 1
    assert err.startswith("error: ")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert run("collect", "digits", "--data", "digits", "--out", out) == 0
    return out


def test_collect_keeps_what_the_network_computes(collected: Path):
    found = Collection.load(collected)
    assert len(found) == 450
    assert next(iter(found.moments)) == "stem.2"  # the blocks, by default
    assert {"layer1.0", "layer3.1"} <= set(found.moments)
    torch.testing.assert_close(found.features @ found.head[0].T + found.head[1], found.logits)
    about = json.loads((collected / "collection.json").read_text())
    assert about["class_names"] == list("0123456789")
    assert about["accuracy"] > 0.98
    rows = list(csv.DictReader((collected / "samples.csv").open()))
    assert len(rows) == 450
    right = np.mean([r["label"] == r["predicted"] for r in rows])
    assert right == pytest.approx(about["accuracy"])
    for kind in ("json", "csv", "png", "svg"):
        assert (collected / f"features.{kind}").stat().st_size > 100


def test_collecting_again_reads_it_back(collected: Path, capsys: pytest.CaptureFixture[str]):
    assert run("collect", "digits", "--data", "digits", "--out", collected, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 450
    refused(
        capsys, 1, "holds shards of another setting", "collect", "digits", "--data", "digits", "--cut-points", "fc",
        "--out", collected,
    )  # fmt: skip


def test_clsdim(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("clsdim", collected, "--out", tmp_path / "new") == 0
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "new" / "clsdim.json").read_text())
    assert record["model"] == "digits"
    assert f"classification dimension    {record['dimension']} of 64" in text
    assert str(tmp_path / "new") in text
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        "clsdim.json", "clsdim.csv", "clsdim-curve.csv", "clsdim.png", "clsdim.svg", "clsdim.html",
    }  # fmt: skip
    curve = list(csv.DictReader((tmp_path / "new" / "clsdim-curve.csv").open()))
    assert len(curve) == 64
    assert run("clsdim", collected, "--projection", "centred", "--keep", "0.5", "--out", tmp_path, "--json") == 0
    other = json.loads(capsys.readouterr().out)
    assert other["projection"] == "centred"
    assert other["dimension"] < record["dimension"]


def test_deficit_writes_a_page_to_search(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("deficit", collected, "--out", tmp_path) == 0
    assert "deficit.html" in capsys.readouterr().out
    record = json.loads((tmp_path / "deficit.json").read_text())
    assert len(record["rows"]) == 10
    rows = list(csv.DictReader((tmp_path / "deficit.csv").open()))
    assert [r["class"] for r in rows] == list("0123456789")
    assert {"r2", "r2_held_out", "r2_null", "duality_gap"} <= set(rows[0])
    page = (tmp_path / "deficit.html").read_text()
    assert page.count('<th scope="row"') == 10
    assert 'type="search"' in page
    assert "<script>" in page
    assert not re.search(r'(?:src|href)\s*=\s*["\'](?!#|data:)', page)
    weight = f"{record['rows'][3]['weights'][0]:+.2f}".replace("-", "−")
    assert f"{record['rows'][3]['names'][0]} ({weight})" in page
    for kind in ("png", "svg"):
        assert (tmp_path / f"deficit.{kind}").stat().st_size > 1000


def test_deficit_of_some_classes(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--classes", "8,1-2", "--samples-used", "reference", "--eta", "3", "--out", tmp_path, "--json")
    assert run("deficit", collected, *options) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["samples_used"] == "reference"
    assert [r["index"] for r in record["rows"]] == [8, 1, 2]
    assert record["eta"] == 3


@pytest.mark.parametrize("reduce", ["flatten", "pool"])
def test_features(reduce: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--limit", 200, "--cut-points", "layer3.*,fc", "--reduce", reduce, "--out", tmp_path)
    assert run("features", "digits", "--data", "digits", *options) == 0
    assert "layer3.1" in capsys.readouterr().out
    record = json.loads((tmp_path / "features.json").read_text())
    widths = {layer["name"]: layer["width"] for layer in record["layers"]}
    assert widths["layer3.1"] == (256 if reduce == "flatten" else 64)
    assert record["layers"][-1]["samples"] == 200
    assert len((tmp_path / "features.csv").read_text().splitlines()) == len(record["layers"]) + 1
    assert run("features", "digits", "--data", "digits", "--limit", 50, "--out", tmp_path, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 9  # the blocks


def test_a_memory_budget_decides_what_is_sketched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ("features", "digits", "--data", "digits", "--limit", 300, "--cut-points", "layer3.1", "--out", tmp_path)
    # 256 dimensions: a covariance of 512 KiB, sketches of 8 KiB a direction
    for size, method in (("1MB", "covariance"), ("128KB", "sketch")):
        assert run(*command, "--memory-budget", size, "--json") == 0
        assert json.loads(capsys.readouterr().out)["layers"][0]["method"] == method
    refused(capsys, 1, "give a larger --memory-budget, or --reduce pool", *command, "--memory-budget", "32KB")
    refused(capsys, 2, "--memory-budget 'much' is not a size", *command, "--memory-budget", "much")


def test_folder_of_classes_and_arrays(tmp_path: Path):
    split = digits_split()
    images, labels = split.held_out_images[:60], split.held_out_labels[:60]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "data" / str(int(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(folder / f"{i:03d}.png")
    (tmp_path / "data" / "3" / "bad.png").write_bytes(b"no image")
    assert run("collect", "digits", "--data", tmp_path / "data", "--out", tmp_path / "a", "--batch-size", 16) == 0
    about = json.loads((tmp_path / "a" / "collection.json").read_text())
    assert (about["samples"], len(about["skipped"])) == (60, 1)
    assert about["accuracy"] > 0.9
    np.save(tmp_path / "x.npy", images.numpy())
    np.save(tmp_path / "y.npy", labels.numpy())
    given = ("--data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    assert run("collect", "digits", *given, "--out", tmp_path / "b") == 0
    with torch.no_grad():
        torch.testing.assert_close(Collection.load(tmp_path / "b").logits, digits_network()(images))
    assert run("clsdim", tmp_path / "b") == 0


def test_random_weights_are_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--weights", "random", "--limit", 40, "--out", tmp_path, "--json")
    assert run("collect", "digits", "--data", "digits", *options) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["weights"] == "random, seed 0"
    assert any("BatchNorm" in note for note in record["notes"])


def test_refusals(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    new = tmp_path / "new"
    refused(capsys, 1, "there is no --data 'nowhere'", "collect", "digits", "--data", "nowhere", "--out", new)
    refused(capsys, 1, "no collected run", "clsdim", tmp_path / "none")
    refused(capsys, 1, "holds no collected run .no manifest.json.; make one .* rankscope collect", "clsdim", tmp_path)
    refused(capsys, 2, "projection", "clsdim", collected, "--projection", "papr", "--out", new)
    refused(capsys, 2, "'x' is no class", "deficit", collected, "--classes", "x", "--out", new)
    refused(capsys, 2, "unknown --reduce 'mean'", "features", "digits", "--data", "digits", "--reduce", "mean", "--out",
            new)  # fmt: skip
    refused(capsys, 2, "no module 'layr1'|matches 'layr", "features", "digits", "--data", "digits", "--cut-points",
            "layr*", "--out", new)  # fmt: skip
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 8, 8), dtype=np.float32))
    np.save(tmp_path / "y.npy", np.zeros(3, dtype=np.int64))
    given = ("--data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    refused(capsys, 1, "3 labels for 4 inputs", "collect", "digits", *given, "--out", new)
    (tmp_path / "empty").mkdir()
    refused(capsys, 1, "holds no images", "collect", "digits", "--data", tmp_path / "empty", "--out", new)


def test_arrays_give_what_the_run_gives(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = Collection.load(collected)
    assert run("clsdim", collected, "--out", tmp_path / "a", "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert run("deficit", collected, "--classes", "3", "--out", tmp_path / "b", "--json") == 0
    deficit = json.loads(capsys.readouterr().out)

    np.save(tmp_path / "features.npy", found.features.numpy())
    np.save(tmp_path / "logits.npy", found.logits.numpy())
    np.save(tmp_path / "y.npy", found.labels.numpy())
    weight, bias = found.head
    np.savez(tmp_path / "head.npz", weight=weight.numpy(), bias=bias.numpy())
    held = {"features": found.features, "logits": found.logits, "labels": found.labels, "weight": weight, "bias": bias}
    save_file(held, tmp_path / "all.safetensors")

    labels = ("--labels", tmp_path / "y.npy")
    parts = (tmp_path / "features.npy", *labels, "--head-file", tmp_path / "head.npz")
    for given in (parts, (tmp_path / "all.safetensors",)):
        assert run("clsdim", *given, "--out", tmp_path / "c", "--json") == 0
        assert json.loads(capsys.readouterr().out)["dimension"] == whole["dimension"]
    for given in ((tmp_path / "logits.npy", *labels), (tmp_path / "all.safetensors",)):
        assert run("deficit", *given, "--classes", "3", "--out", tmp_path / "d", "--json") == 0
        made = json.loads(capsys.readouterr().out)
        assert made["rows"][0]["r2"] == deficit["rows"][0]["r2"]
        assert made["data"] == str(given[0])
    assert (tmp_path / "d" / "deficit.html").exists()

    out = ("--out", tmp_path / "e")
    refused(capsys, 1, "holds no head; add --head-file FILE", "clsdim", *parts[:3], *out)
    old = ("--head", tmp_path / "head.npz")
    refused(capsys, 2, r"--head is now --head-file; write --head-file .*head\.npz", "clsdim", *parts[:3], *old, *out)
    refused(capsys, 2, "--head-file belongs to an array file", "clsdim", collected, *parts[3:], *out)
    refused(capsys, 1, "--head-file .*none.npz' is no file", "clsdim", *parts[:4], tmp_path / "none.npz", *out)
    refused(capsys, 1, "holds no labels; add --labels", "deficit", tmp_path / "logits.npy", *out)
    refused(capsys, 1, "none.npy' is no file", "deficit", tmp_path / "none.npy", *out)
    refused(capsys, 1, "name its array logits", "deficit", tmp_path / "head.npz", *labels, *out)
    refused(capsys, 2, "--labels belongs to an array file", "deficit", collected, *labels, *out)
    np.save(tmp_path / "y.npy", found.labels.numpy()[1:])
    refused(capsys, 1, "449 labels for 450 rows of logits", "deficit", tmp_path / "logits.npy", *labels, *out)
    held["bias"] = bias + 5 * torch.arange(10)
    save_file(held, tmp_path / "all.safetensors")
    refused(capsys, 1, "stored logits", "clsdim", tmp_path / "all.safetensors", *out)
    (tmp_path / "all.safetensors").write_bytes(b"")
    refused(capsys, 1, "all.safetensors' cannot be read", "clsdim", tmp_path / "all.safetensors", *out)


def test_axis_of_the_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    widths = {}
    for axis in ("first", "last"):
        given = ("--data", "digits", "--limit", "40", "--cut-points", "stem.2", "--channels", axis)
        assert run("features", "digits", *given, "--reduce", "pool", "--out", tmp_path / "f", "--json") == 0
        features = json.loads(capsys.readouterr().out)
        assert run("collect", "digits", *given, "--out", tmp_path / axis) == 0
        capsys.readouterr()
        widths[axis] = Collection.load(tmp_path / axis).moments["stem.2"].width
        assert features["layers"][0]["width"] == widths[axis]
    assert widths == {"first": 16, "last": 8}
    refused(capsys, 2, "unknown --channels 'middle'", "features", "digits", "--data", "digits", "--channels", "middle",
            "--out", tmp_path / "f")  # fmt: skip
