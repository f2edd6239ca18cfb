"""``--data`` with folders of pictures as people have them: modes, links, files beside the classes, empty classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rankscope as rs
from rankscope.cli import main
from rankscope.cli.class_data import read_folder
from rankscope.features import Collection

# The head has one class more than the two folders of most tests where three are asked for.
FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, size, classes):
        super().__init__()
        self.input_size = size
        self.flat, self.fc = nn.Flatten(), nn.Linear(size[0] * size[1] * size[2], classes)

    def forward(self, x):
        return self.fc(self.flat(x))

def grey(num_classes=2):
    torch.manual_seed(0)
    return Net((1, 4, 4), num_classes)

def coloured(num_classes=2):
    torch.manual_seed(0)
    return Net((3, 4, 4), num_classes)
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return str(tmp_path / "net.py")


def put(file: Path, image: Image.Image | None = None, **options: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(PIXELS) if image is None else image).save(file, **options)


def classes(root: Path, *names: str, each: int = 2) -> Path:
    for number, name in enumerate(names):
        for i in range(each):
            put(root / name / f"{i}.png", Image.fromarray(np.roll(PIXELS, 3 * number + i)))
    return root


def collected(net: str, data: Path, out: Path, *more: str) -> Collection:
    assert main(["collect", net, "--data", str(data), "--out", str(out), "--json", *more]) == 0
    return Collection.load(out)


def refused(capsys: pytest.CaptureFixture[str], text: str, *args: object) -> None:
    capsys.readouterr()
    assert main([str(a) for a in args]) == 1
    err = capsys.readouterr().err
    assert re.search(text, err), err
    assert err.count("\n") == 1


DEEP = PIXELS.astype(np.uint16) * 257  # the same picture in 16 bits
DIM = DEEP // 300  # no value above 255, and all of them near black
UNIT = (PIXELS / 255).astype(np.float32)


@pytest.mark.parametrize("factory", ["grey", "coloured"])
@pytest.mark.parametrize(
    ("name", "image", "truth"),
    [
        ("deep.png", Image.fromarray(DEEP), PIXELS / 255),
        ("deep.tif", Image.fromarray(DEEP), PIXELS / 255),
        ("dim.png", Image.fromarray(DIM), DIM / 65535),
        ("unit.tif", Image.fromarray(UNIT), UNIT),
        ("alpha.png", Image.fromarray(np.dstack([PIXELS, 255 - PIXELS]), "LA"), PIXELS / 255),
        ("palette.png", Image.fromarray(PIXELS).convert("P"), PIXELS / 255),
        ("animated.gif", Image.fromarray(PIXELS), PIXELS / 255),
        ("turned.png", Image.fromarray(PIXELS), PIXELS / 255),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_reaches_the_model_as_it_is(
    net: str, tmp_path: Path, factory: str, name: str, image: Image.Image, truth: np.ndarray
) -> None:
    """The features before the head of a network without a layer before it are the pixels themselves."""
    options: dict[str, object] = {}
    if name == "animated.gif":
        options = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}
    if name == "turned.png":
        options = {"exif": exif(6)}
    put(tmp_path / "data" / "a" / name, image, **options)
    put(tmp_path / "data" / "b" / "other.png", Image.fromarray(255 - PIXELS))
    found = collected(f"{net}:{factory}", tmp_path / "data", tmp_path / "run")
    assert found.features is not None
    seen = found.features[0].reshape(-1, 4, 4).numpy()
    # 8 bits hold any of these pixels to half a step
    np.testing.assert_allclose(seen, np.broadcast_to(truth, seen.shape), atol=0.51 / 255)


def exif(turn: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = turn
    return found


def test_a_link_to_a_folder_above_gives_no_picture_twice(net: str, tmp_path: Path) -> None:
    data = classes(tmp_path / "data", "a", "b")
    (data / "a" / "again").symlink_to(data, target_is_directory=True)
    (data / "b" / "here").symlink_to(data / "b", target_is_directory=True)
    assert collected(f"{net}:grey", data, tmp_path / "run").labels.tolist() == [0, 0, 1, 1]


def test_pictures_beside_the_class_folders_are_left_out_and_that_is_said(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = classes(tmp_path / "data", "a", "b")
    put(data / "stray.png")
    assert collected(f"{net}:grey", data, tmp_path / "run").labels.tolist() == [0, 0, 1, 1]
    (note,) = [n for n in json.loads(capsys.readouterr().out)["notes"] if "beside" in n]
    assert note == "1 image beside the class folders has no class and was left out, the first stray.png."


def test_an_empty_class_folder_counts_where_names_give_the_label(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = classes(tmp_path / "data", "1", "2")
    (data / "0").mkdir()
    found = collected(f"{net}:grey", data, tmp_path / "run", "--num-classes", "4")
    assert found.labels.tolist() == [1, 1, 2, 2]
    (note,) = [n for n in json.loads(capsys.readouterr().out)["notes"] if "head has" in n]
    assert note == "The head has 4 classes. The folder holds 2 of them: 1 = 1, 2 = 2."


@pytest.mark.parametrize("empty", ["aa", "z"])
def test_an_empty_class_folder_is_refused_where_the_order_gives_the_label(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: str
) -> None:
    data = classes(tmp_path / "data", "a", "b")
    (data / empty).mkdir()
    (data / empty / "readme.txt").write_text("no picture")
    command = ("collect", f"{net}:grey", "--num-classes", 3, "--data", data, "--out", tmp_path / "run")
    refused(capsys, rf"class folder '.*{empty}' holds no image, .*: remove it if it is no class", *command)
    (data / empty / "readme.txt").unlink()
    (data / empty).rmdir()
    assert main(list(map(str, command))) == 0


def test_a_folder_without_classes_has_no_labels(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = tmp_path / "flat"
    for i in range(3):
        put(flat / f"{i}.png", Image.fromarray(np.roll(PIXELS, i)))
    assert main(["collect", f"{net}:grey", "--data", str(flat), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] is None
    assert Collection.load(tmp_path / "run").labels.tolist() == [-1] * 3
    (flat / "empty").mkdir()  # a class that lacks its pictures
    refused(
        capsys,
        r"is no folder with one subfolder per class \(3 images are in it and none in a subfolder\)",
        *("collect", f"{net}:grey", "--data", flat, "--out", tmp_path / "run"),
    )
    put(flat / "one" / "3.png", Image.fromarray(np.roll(PIXELS, 7)))  # not a class: nothing is counted by it
    capsys.readouterr()
    assert main(["features", f"{net}:grey", "--data", str(flat), "--out", str(tmp_path / "f"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["samples"] == 4


def test_a_folder_without_a_picture_and_one_that_cannot_be_read(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none" / "a").mkdir(parents=True)
    (tmp_path / "none" / "a" / "x.txt").write_text("x")
    for command in (("collect", "--out", tmp_path / "run"), ("features", "--out", tmp_path / "f")):
        refused(
            capsys, r"holds no images \(.bmp, ", command[0], f"{net}:grey", "--data", tmp_path / "none", *command[1:]
        )
    data = classes(tmp_path / "data", "a", "b")
    scandir = os.scandir

    def closed(folder: str) -> object:
        if str(folder).endswith("/b"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    refused(
        capsys,
        r"folder '.*/b' cannot be read: Permission denied; check who may read it",
        *("collect", f"{net}:grey", "--data", data, "--out", tmp_path / "run"),
    )


@pytest.mark.parametrize("closed", ["data", "data/a"])
def test_a_data_folder_that_cannot_be_read(closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to read it nothing in it is listed; without that to enter it, nothing listed can be asked."""
    data = classes(tmp_path / "data", "a", "b")

    def refusing(known: Callable[..., object]) -> Callable[..., object]:
        def call(path: object = ".", **more: object) -> object:
            if Path(str(path)) == tmp_path / closed:
                raise PermissionError(13, "Permission denied", str(path))
            return known(path, **more)

        return call

    for name in ("listdir", "scandir", *(["stat"] if closed == "data/a" else [])):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(rs.DataError, match=r"folder '.*' cannot be read: Permission denied; check who may read it"):
        read_folder(data)


def test_a_damaged_picture_is_named_in_our_words(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = classes(tmp_path / "data", "a", "b")
    (data / "b" / "bad.png").write_bytes(b"no picture")
    found = collected(f"{net}:grey", data, tmp_path / "run")
    assert [(Path(one.name).name, one.reason) for one in found.skipped] == [
        ("bad.png", "is no image that Pillow can read")
    ]
    assert torch.equal(found.labels, torch.tensor([0, 0, 1, 1]))


def _of_the_same_time(data: Path) -> None:
    """One pixel of one file, and size and time as they were."""
    file = data / "b" / "1.bmp"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def _exchanged(data: Path) -> None:
    """Two files change names, within their class."""
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        (data / "a" / f"{old}.bmp").rename(data / "a" / f"{new}.bmp")


def _of_the_other_class(data: Path) -> None:
    (data / "a" / "1.bmp").rename(data / "b" / "2.bmp")


@pytest.mark.parametrize("change", [_of_the_same_time, _exchanged, _of_the_other_class])
def test_a_run_does_not_go_on_with_other_pictures(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    data = tmp_path / "data"
    for number, name in enumerate("ab"):
        for i in range(2):
            put(data / name / f"{i}.bmp", Image.fromarray(np.roll(PIXELS, 3 * number + i)))
    collected(f"{net}:grey", data, tmp_path / "run")
    capsys.readouterr()
    assert collected(f"{net}:grey", data, tmp_path / "run").labels.tolist() == [0, 0, 1, 1]
    assert json.loads(capsys.readouterr().out)["resumed"] == 4
    change(data)
    command = ("collect", f"{net}:grey", "--data", data, "--out", tmp_path / "run")
    refused(capsys, r"holds shards of another data set \(.*\); give another folder", *command)
