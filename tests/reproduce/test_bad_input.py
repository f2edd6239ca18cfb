"""Folders, images and weights that do not fit: one clear error that names the file, or a note that counts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_world import World

from rankscope._base.errors import DataError, ModelError, UsageError
from rankscope.reproduce import reproduce
from rankscope.reproduce.data import read_class_folders
from rankscope.reproduce.measured import chance_note


@pytest.fixture
def mine(world: World, tmp_path: Path) -> World:
    return world.copy(tmp_path)


def run(world: World, tmp_path: Path, name: str = "table1", **more: Any) -> Any:
    given = {
        "imagenet": world.images,
        "weights": world.weights,
        "networks": [world.net],
        "only": [],
        "scale": "small",
        **more,
    }
    return reproduce(name, out=tmp_path / "out", device="cpu", **given)


def test_no_such_folder(mine: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--imagenet '.*/nowhere' is no folder; give the one that holds one subfolder"):
        run(mine, tmp_path, imagenet=tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"--weights '.*/nowhere' is no folder"):
        run(mine, tmp_path, weights=tmp_path / "nowhere")


def test_wrong_layouts(mine: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds splits, not classes; give '.*/val'"):
        run(mine, tmp_path, imagenet=mine.images.parent)
    with pytest.raises(DataError, match=r"class0' holds 4 images outside class folders \(0.png, …\); sort them"):
        run(mine, tmp_path, imagenet=mine.images / "class0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has 0 class folders; it must hold one subfolder a class"):
        run(mine, tmp_path, imagenet=tmp_path / "empty")
    for file in (mine.images / "class3").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="1 class folders hold no images: class3; fill or remove"):
        run(mine, tmp_path)


def test_missing_classes(mine: World, tmp_path: Path) -> None:
    shutil.rmtree(mine.images / "class4")
    expected = r"has 9 class folders, but the head of small.safetensors \(small\) has 10 classes: 1 are missing"
    with pytest.raises(DataError, match=expected):
        run(mine, tmp_path)


def test_a_head_of_fewer_classes(mine: World, tmp_path: Path) -> None:
    file = mine.weights / "small.safetensors"
    state = load_file(file)
    save_file({k: v[:7].contiguous() if k.startswith("5.") else v for k, v in state.items()}, file)
    expected = r"the head of small.safetensors \(small\) has 7 classes, but --imagenet '.*val' has 10 class folders"
    with pytest.raises(ModelError, match=expected):
        run(mine, tmp_path)


def test_weights_of_another_architecture(mine: World, tmp_path: Path) -> None:
    (mine.weights / "small.safetensors").unlink()
    (mine.weights / "test_vit.safetensors").rename(mine.weights / "small.safetensors")
    with pytest.raises(ModelError, match=r"weights file 'small.safetensors' does not fit the model: .* missing"):
        run(mine, tmp_path)


def test_missing_and_ambiguous_weights(mine: World, tmp_path: Path) -> None:
    expected = r"lacks resnet18.safetensors \(or .pth\) for ResNet-18; resnet50.safetensors .* for ResNet-50: put"
    with pytest.raises(ModelError, match=expected):
        run(mine, tmp_path, only=["ResNet-18", "resnet50"])
    shutil.copy(mine.weights / "small.safetensors", mine.weights / "small-2.safetensors")
    with pytest.raises(ModelError, match=r"has 2 files for small: small-2.safetensors, small.safetensors; leave one"):
        run(mine, tmp_path)


def test_damaged_weights(mine: World, tmp_path: Path) -> None:
    (mine.weights / "small.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"weights file 'small.safetensors' is no readable safetensors file"):
        run(mine, tmp_path)


def test_pretrained_weights_without_a_network(mine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loader says when nothing can be fetched, with the remedy of this command instead of the loader's."""
    from rankscope.reproduce import networks

    def offline(spec: str, **_: Any) -> Any:
        raise ModelError(
            f"weights of {spec} could not be fetched (no address). Without a network: use --weights random"
        )

    monkeypatch.setattr(networks, "load_model", offline)
    expected = r"could not be fetched \(no address\): fetch \S+resnet18\S+\.pth, put it into a folder as resnet18.pth"
    with pytest.raises(ModelError, match=expected) as told:
        run(mine, tmp_path, weights=None, networks=[], only=["ResNet-18"])
    assert "random" not in str(told.value)
    with pytest.raises(ModelError, match=r"save timm.create_model\('vit_tiny_patch16_224\.\w+', pretrained=True\)"):
        run(mine, tmp_path, weights=None, networks=[], only=["ViT-T"])


def test_names_that_are_no_network_of_the_paper(mine: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--only 'ResNet-19' is none of the paper's networks; did you mean 'ResNet-1"):
        run(mine, tmp_path, only=["ResNet-19"])
    with pytest.raises(UsageError, match="no network is left: this experiment has ResNet-18, ResNet-50 and --only"):
        run(mine, tmp_path, "fig1a", only=["ViT-T"], networks=[])


def test_too_small_a_limit(mine: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--limit 9 leaves classes of 10 without an image"):
        run(mine, tmp_path, limit=9)
    with pytest.raises(UsageError, match=r"--images 50, but '.*' has 40 that can be read"):
        run(mine, tmp_path, "fig1a", images=50)


def test_a_limit_is_spread_over_the_classes(mine: World) -> None:
    folders = read_class_folders(mine.images)
    counts = torch.bincount(torch.tensor([label for _, label in folders.draw(25, 0)]), minlength=10)
    assert sorted(set(counts.tolist())) == [2, 3]
    assert folders.draw(25, 0) != folders.draw(25, 1)
    assert folders.draw(25, 0) == sorted(folders.draw(25, 0), key=lambda one: one[1])


def test_other_modes_are_converted_and_unreadable_images_counted(mine: World, tmp_path: Path) -> None:
    first = mine.images / "class0"
    picture = Image.open(first / "0.png").convert("RGB")
    picture.convert("L").save(first / "0.png")
    picture.convert("CMYK").save(first / "1.jpg")
    picture.convert("RGBA").save(first / "2.png")
    picture.convert("P").save(first / "3.gif")
    (mine.images / "class1" / "2.png").write_bytes(b"\x89PNG but no more")
    (mine.images / "class2" / "0.png").write_bytes(b"")
    found = run(mine, tmp_path)
    row = found.values.iloc[0]
    assert (row["images"], row["skipped"]) == (42 - 2, 2)  # two files were added beside four
    note = next(n for n in found.notes if "could not be read" in n)
    assert note.startswith("small: 2 images could not be read and were left out: class1/2.png (")
    assert "class2/0.png (" in note
    drawn = run(mine, tmp_path, "fig1a", images=40, weights=mine.weights)
    assert len(drawn.settings["networks"][0]["images"]) == 40
    assert any("2 images could not be read" in n for n in drawn.notes)


def test_an_accuracy_of_chance_is_remarked(mine: World, tmp_path: Path) -> None:
    """Folders in another order than the head's: the numbers come out, the note says what is wrong."""
    for c in range(10):
        (mine.images / f"class{c}").rename(mine.images / f"{'zyxwvutsrq'[c]}")
    found = run(mine, tmp_path)
    start, end = (
        "not clearly above guessing among 10 classes (10.00%",
        "; are the class folders in the order of its head",
    )
    assert any(start in n and end in n for n in found.notes)


@pytest.mark.parametrize(
    ("right", "samples", "classes", "said"),
    [
        (40, 60, 3, ""),  # 66.67 %: chance is 33.33 %, its standard error 6.09 %, so guessing ends at 57.68 %
        (34, 60, 3, "not clearly above guessing among 3 classes (33.33%, four standard errors above it is 57.68%)"),
        (35, 60, 3, ""),
        (100, 100, 2, ""),
        (71, 100, 2, ""),  # guessing ends at 70 %
        (70, 100, 2, "not clearly above guessing among 2 classes (50.00%, four standard errors above it is 70.00%)"),
        (12, 12, 2, "12 images are too few to tell an accuracy of 100.00% from guessing among 2 classes (50.00%)"),
        (3, 12, 2, "accuracy 25.00% on 12 images is not clearly above guessing"),
        (30, 20_000, 1000, "not clearly above guessing among 1,000 classes (0.10%"),
        (5, 5, 1, ""),
    ],
)
def test_chance_is_what_guessing_may_give(right: int, samples: int, classes: int, said: str) -> None:
    found = chance_note("net", {"accuracy": right / samples, "samples": samples, "classes": classes})
    assert (found == []) if not said else (len(found) == 1 and said in found[0])


def test_orders_of_class_folders(tmp_path: Path) -> None:
    def order(*names: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        root = tmp_path / "-".join(names)
        for name in names:
            (root / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(root / name / "a.png")
        found = read_class_folders(root)
        assert [Path(f).parent.name for f, _ in found.files] == list(found.classes)
        return found.classes, found.names

    assert order("10", "9", "2")[0] == ("2", "9", "10")
    assert order("b", "10", "a")[0] == ("10", "a", "b")
    classes, names = order("n04486054", "n01534433")  # in the order of the 1,000, with their names
    assert classes == ("n01534433", "n04486054")
    assert names == ("junco", "triumphal arch")
    assert (
        "the 2 class folders are not ImageNet's 1,000" in read_class_folders(tmp_path / "n04486054-n01534433").notes[0]
    )


def test_imagenet_with_images_missing_is_remarked(tmp_path: Path) -> None:
    from timm.data.imagenet_info import ImageNetInfo

    for name in ImageNetInfo("imagenet-1k").label_names():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.JPEG").touch()
    found = read_class_folders(tmp_path)
    assert found.notes == ("1,000 images where ImageNet's validation set has 50,000",)
    assert len(found) == 1000
    assert found.names[13] == "junco"
