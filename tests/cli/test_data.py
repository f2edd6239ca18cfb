"""``--data`` and ``--labels``: folders in their order, held against the model's head; what is wrong is told at once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from rankscope.cli import main
from rankscope.cli.data import load_data
from rankscope.features import Collection
from rankscope.features.shards import ShardStore
from rankscope.loading import LoadedModel, load_images, plain_preprocessing

# A network of two classes or as many as are asked for, on 1×8×8 pictures; stops like Ctrl-C after as many batches as
# the file "stop" beside it holds: a count in the class or in the environment would make it another model.
FACTORY = """
from pathlib import Path

import torch
from torch import nn

class Net(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, classes):
        super().__init__()
        self.flat, self.hidden, self.fc = nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, classes)

    def forward(self, x):
        count = Path(__file__).with_name("stop")
        if count.exists() and len(x) > 1:
            left = int(count.read_text()) - 1
            count.write_text(str(left))
            if left < 0:
                raise KeyboardInterrupt
        return self.fc(torch.relu(self.hidden(self.flat(x))))

def build(num_classes=2):
    torch.manual_seed(0)
    return Net(num_classes)

def three():
    return build(3)
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}:build"


def run(*args: object) -> int:
    return main([str(a) for a in args])


def refused(capsys: pytest.CaptureFixture[str], code: int, text: str, *args: object) -> str:
    capsys.readouterr()
    assert run(*args) == code
    err = capsys.readouterr().err
    assert re.search(text, err), err
    assert err.count("\n") == 1
    return err


def pictures(root: Path, *classes: str, each: int = 3) -> Path:
    """``each`` pictures a class, all different."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.random.default_rng(100 * number + i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def labels_by_folder(out: Path, root: Path) -> dict[str, int]:
    """Folder of every file in the order of the collection, with the label that was kept for it."""
    found = Collection.load(out)
    files = sorted(root.glob("*/*.png"), key=lambda p: (p.parent.name, p.name))
    pairs = {(files[int(i)].parent.name, int(label)) for i, label in zip(found.indices, found.labels, strict=True)}
    assert len(pairs) == len({folder for folder, _ in pairs})
    return dict(pairs)


def test_numbers_take_numerical_order(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pictures(tmp_path / "data", *map(str, range(11)))
    options = ("--data", root, "--weights", "random", "--num-classes", 11, "--out", tmp_path / "run")
    assert run("collect", net, *options) == 0
    assert "Note: The class folders are numbers and were taken in numerical order." in capsys.readouterr().out
    assert labels_by_folder(tmp_path / "run", root) == {str(i): i for i in range(11)}
    about = json.loads((tmp_path / "run" / "collection.json").read_text())
    assert about["class_names"] == [str(i) for i in range(11)]


def test_a_subset_of_the_head_is_noted(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def collected(name: str, *classes: str, num: int) -> tuple[dict[str, int], str, list[str]]:
        root = pictures(tmp_path / name, *classes)
        out = tmp_path / f"run-{name}"
        options = ("--weights", "random", "--num-classes", num, "--out", out)
        assert run("collect", net, "--data", root, *options) == 0
        names = json.loads((out / "collection.json").read_text())["class_names"]
        return labels_by_folder(out, root), capsys.readouterr().out, names

    labels, text, _ = collected("numbers", "2", "10", num=12)
    assert labels == {"2": 2, "10": 10}
    assert "Note: The head has 12 classes. The folder holds 2 of them: 2 = 2, 10 = 10.\n" in text
    labels, text, names = collected("words", "bee", "ant", num=3)
    assert labels == {"ant": 0, "bee": 1}
    assert "The folder holds 2 of them: ant = 0, bee = 1. They are counted from 0," in text
    assert names == ["ant", "bee", "2"]
    labels, _, names = collected("imagenet", "n04486054", "n01534433", num=1000)
    assert labels == {"n01534433": 13, "n04486054": 873}
    assert (names[13], names[873]) == ("junco", "triumphal arch")


def test_folders_of_the_models_own_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pictures(tmp_path / "data", "7", "3")
    assert run("collect", "digits", "--data", root, "--out", tmp_path / "run") == 0
    assert labels_by_folder(tmp_path / "run", root) == {"3": 3, "7": 7}
    assert "The head has 10 classes. The folder holds 2 of them: 3 = 3, 7 = 7.\n" in capsys.readouterr().out


def test_more_classes_than_the_head(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pictures(tmp_path / "data", "ant", "bee", "cat")
    out = ("--weights", "random", "--out", tmp_path / "run")
    text = r"has 3 class folders, but the head of .* has 2 classes; give a model with 3 \(--num-classes 3"
    refused(capsys, 1, text, "collect", net, "--data", root, *out)
    assert run("features", net, "--data", root, *out) == 0  # no labels are needed there
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 8, 8), dtype=np.float32))
    outside = "labels run from 0 to 2, but the head of .* has 2 classes"
    for labels, seen in (([0, 1, 2, 1], outside), ([0, 1, -1, 1], r"1 of 4 samples have no class \(label -1")):
        np.save(tmp_path / "y.npy", np.array(labels))
        given = ("--data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
        refused(capsys, 1, seen, "collect", net, *given, *out)
    refused(capsys, 1, "labels run from 0 to 9, but the head", "collect", net, "--data", "digits", *out)


def test_splits_are_no_classes(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for split in ("train", "val"):
        pictures(tmp_path / "data" / split, "ant", "bee")
    for command in ("collect", "features"):
        text = rf"--data '{tmp_path / 'data'}' holds splits, not classes; give '{tmp_path / 'data' / 'val'}'"
        given = ("--data", tmp_path / "data", "--weights", "random", "--out", tmp_path / "run")
        refused(capsys, 1, re.escape(text), command, net, *given)


def test_arrays_need_no_labels_and_a_shape_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32))
    given, out = ("--data", tmp_path / "x.npy"), ("--out", tmp_path / "run")
    assert run("collect", "digits", *given, "--out", tmp_path / "bare") == 0
    assert "no labels, so no accuracy" in capsys.readouterr().out
    assert Collection.load(tmp_path / "bare").labels.tolist() == [-1] * 12
    for command in (("clsdim",), ("deficit",), ("features", "--head")):
        text = "bare was collected without labels, and classes are needed here; collect again with --labels FILE"
        refused(capsys, 1, text, command[0], tmp_path / "bare", *command[1:], "--out", tmp_path / "of_it")
    assert run("features", tmp_path / "bare", "--out", tmp_path / "of_it") == 0
    np.savez(tmp_path / "x.npz", inputs=np.load(tmp_path / "x.npy"), kind=np.arange(12))
    text = "x.npz holds one integer per sample under the name 'kind'; name it labels"
    refused(capsys, 1, text, "collect", "digits", "--data", tmp_path / "x.npz", *out)
    assert run("features", "digits", *given, "--cut-points", "fc", *out) == 0
    np.save(tmp_path / "y.npy", np.arange(12) % 10)
    np.save(tmp_path / "wide.npy", np.zeros((12, 3, 8, 8), dtype=np.float32))
    text = r"wide.npy has shape \(12, 3, 8, 8\); a sample of \(3, 8, 8\) does not fit digits, which takes \(1, 8, 8\)"
    labels = ("--labels", tmp_path / "y.npy")
    refused(capsys, 1, text, "collect", "digits", "--data", tmp_path / "wide.npy", *labels, *out)
    refused(capsys, 1, text, "features", "digits", "--data", tmp_path / "wide.npy", *out)
    np.save(tmp_path / "none.npy", np.zeros((0, 1, 8, 8), dtype=np.float32))
    refused(capsys, 1, "none.npy .* so no sample", "features", "digits", "--data", tmp_path / "none.npy", *out)


def test_names_of_folders_reach_the_deficit(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pictures(tmp_path / "data", "bee", "cat", "ant", each=20)
    out = tmp_path / "run"
    model = net.replace(":build", ":three")
    assert run("collect", model, "--data", root, "--weights", "random", "--out", out) == 0
    assert json.loads((out / "collection.json").read_text())["class_names"] == ["ant", "bee", "cat"]
    assert run("deficit", out, "--classes", "cat,ant", "--eta", "0.001", "--out", tmp_path / "d") == 0
    record = json.loads((tmp_path / "d" / "deficit.json").read_text())
    assert [(r["index"], r["name"]) for r in record["rows"]] == [(2, "cat"), (0, "ant")]
    assert re.search(r"\bcat\b", capsys.readouterr().out)
    assert ">cat<" in (tmp_path / "d" / "deficit.html").read_text()


def test_a_class_without_samples_names_both_remedies(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pictures(tmp_path / "data", "ant", "bee", each=20)
    out = tmp_path / "run"
    options = ("--weights", "random", "--num-classes", 4, "--out", out)
    assert run("collect", net, "--data", root, *options) == 0
    text = r"class 2 has no samples \(2 such classes\).* under --classes"
    refused(capsys, 1, text, "deficit", out)


def test_features_name_what_they_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pictures(tmp_path / "data", "0", "1", each=20)
    (root / "0" / "5.png").write_bytes(b"no image")
    (root / "1" / "7.png").write_bytes(b"")
    out = tmp_path / "run"
    assert run("features", "digits", "--data", root, "--cut-points", "fc", "--out", out) == 0
    text = capsys.readouterr().out
    assert "2 unreadable samples skipped:" in text
    assert f"{root / '0' / '5.png'}: " in text
    record = json.loads((out / "features.json").read_text())
    assert [Path(one["name"]).name for one in record["skipped"]] == ["5.png", "7.png"]
    assert record["layers"][0]["samples"] == 38
    for file in root.glob("*/*.png"):
        file.write_bytes(b"")
    text = r"no readable sample \(40 skipped; the first: .*0.png"
    refused(capsys, 1, text, "features", "digits", "--data", root, "--cut-points", "fc", "--out", out)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ((), 1280),  # 21 batches of 64 are 1,344 samples; five shards of 256
        (("--shard-size", 500), 1024),  # two shards of 8 batches
        (("--shard-size", 1500), 0),
    ],
)
def test_an_interruption_says_what_is_kept(
    net: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    kept: int,
):
    out = tmp_path / "run"
    stop = Path(net.removesuffix(":build")).with_name("stop")
    stop.write_text("33")  # twelve passes look for samples of a batch that change each other
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2000, 1, 8, 8), dtype=np.float32))
    np.save(tmp_path / "y.npy", np.arange(2000) % 2)
    given = ("--data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--weights", "random", "--out", out)
    err = refused(capsys, 130, "^interrupted", "collect", net, *given, *options)
    assert ShardStore(out, {}).progress() == ((kept, 2000) if kept else (0, 0))
    assert (f"{kept:,} of 2,000 samples are kept") in err
    assert ("the same command continues after them" in err) == bool(kept)
    stop.unlink()
    assert run("collect", net, *given, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == kept
    found = Collection.load(out)
    assert Counter(found.labels.tolist()) == {0: 1000, 1: 1000}
    refused(capsys, 2, "--shard-size is 0", "collect", net, *given, "--shard-size", 0)


def test_notes_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ("--data", "digits", "--limit", 40, "--weights", "random", "--cut-points", "fc", "--out", tmp_path)
    for command in ("collect", "features"):
        assert run(command, "digits", *given) == 0
        assert (
            capsys.readouterr().out.count(
                "Note: The running statistics of 15 BatchNorm layers were set from 32 images."
            )
            == 1
        )


def test_features_of_a_collected_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    assert run("collect", "digits", "--data", "digits", "--limit", 100, "--cut-points", "layer3.*", "--out", out) == 0
    written = json.loads((out / "features.json").read_text())
    assert run("features", out, "--out", tmp_path / "again", "--json") == 0
    capsys.readouterr()
    again = json.loads((tmp_path / "again" / "features.json").read_text())
    for one, other in zip(again["layers"], written["layers"], strict=True):
        # a run on a GPU decomposes there, and the same moments read back on a CPU: eigenvalues agree to rounding
        for key in ("eigenvalues", "participation_ratio", "stable_rank", "rounding"):
            np.testing.assert_allclose(one.pop(key), other.pop(key), rtol=1e-9, atol=1e-10)
        # both take square roots: an eigenvalue of the size of rounding counts as √ε, times its logarithm
        root = np.finfo(float).eps ** 0.5
        for key in ("rankme", "effective_rank"):
            assert one.pop(key) == pytest.approx(other.pop(key), rel=-one["width"] * root * np.log(root))
        assert one.pop("alpha_req") == pytest.approx(other.pop("alpha_req"), rel=1e-9)  # logarithms of rounding
        assert one == other
    assert (again["model"], again["data"], again["layers"][0]["reduce"]) == ("digits", "digits", "pool")
    (out / "features.csv").unlink()
    assert run("features", out) == 0
    assert (out / "features.csv").exists()
    for option, value in (("--reduce", "pool"), ("--seed", 3), ("--cut-points", "fc"), ("--channels", "last")):
        refused(capsys, 2, rf"{option} does not apply to '{out}'", "features", out, option, value)
    refused(capsys, 2, "'digits' is no folder .*add --data", "features", "digits")
    np.save(tmp_path / "f.npy", Collection.load(out).features.numpy())
    assert run("features", tmp_path / "f.npy", "--out", tmp_path / "f", "--json") == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert (layer["width"], layer["samples"]) == (64, 100)


def test_a_missing_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "there").mkdir()
    for name in ("there", "nowhere"):
        err = refused(capsys, 1, r"rankscope collect MODEL --data DATA --out", "clsdim", tmp_path / name)
        assert "Errno" not in err


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (None, range(10)),
        (tuple("9876543210"), range(9, -1, -1)),
        (tuple("abcdefghij"), range(10)),
        (tuple("9876543210xy"), range(10)),  # of another head
    ],
)
def test_digits_are_the_classes_that_a_model_names_so(names: tuple[str, ...] | None, places: Sequence[int]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    made = plain_preprocessing((1, 8, 8))
    loaded = LoadedModel(net, "net", "hf", "trained", preprocessing=made, class_names=names)
    found = load_data("digits", loaded, labels=None, limit=30, seed=0)
    plain = load_images("digits", preprocessing=made, limit=30, seed=0)
    assert plain.labels is not None
    assert [int(label) for _, label in found.dataset] == [places[label] for label in plain.labels]
    assert found.class_names == (names if names and places[0] else tuple("0123456789"))
