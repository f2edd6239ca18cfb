"""Folders, images and weights that do not fit: one clear error that names the file, or a note that counts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_world import World

from rankscope._base.errors import DataError, ModelError, NotFetchedError, UsageError
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.cli import main
from rankscope.loading import load_images, plain_preprocessing
from rankscope.reproduce import reproduce
from rankscope.reproduce.data import read_class_folders
from rankscope.reproduce.measured import chance_fact
from rankscope.views.sentences import sentence


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
    with pytest.raises(DataError, match=r"^imagenet '.*/nowhere' is no folder; give the one that holds one subfolder"):
        run(mine, tmp_path, imagenet=tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"^weights '.*/nowhere' is no folder"):
        run(mine, tmp_path, weights=tmp_path / "nowhere")


def test_wrong_layouts(mine: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds splits, not classes; give '.*/val'"):
        run(mine, tmp_path, imagenet=mine.images.parent)
    with pytest.raises(DataError, match=r"class0' holds 4 images outside class folders \(0.png, …\); sort them"):
        run(mine, tmp_path, imagenet=mine.images / "class0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has 0 class folders; it must hold one subfolder per class"):
        run(mine, tmp_path, imagenet=tmp_path / "empty")
    for file in (mine.images / "class3").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="1 class folders hold no images: class3; fill or remove"):
        run(mine, tmp_path)


def test_missing_classes(mine: World, tmp_path: Path) -> None:
    shutil.rmtree(mine.images / "class4")
    expected = (
        r"has 9 class folders, but the head of .*/weights/small.safetensors \(small\) has 10 classes: 1 are missing"
    )
    with pytest.raises(DataError, match=expected):
        run(mine, tmp_path)


def test_a_head_of_fewer_classes(mine: World, tmp_path: Path) -> None:
    file = mine.weights / "small.safetensors"
    state = load_file(file)
    save_file({k: v[:7].contiguous() if k.startswith("5.") else v for k, v in state.items()}, file)
    expected = (
        r"the head of .*/weights/small.safetensors \(small\) has 7 classes, but imagenet '.*val' has 10 class folders"
    )
    with pytest.raises(ModelError, match=expected):
        run(mine, tmp_path)


def test_weights_of_another_architecture(mine: World, tmp_path: Path) -> None:
    (mine.weights / "small.safetensors").unlink()
    (mine.weights / "test_vit.safetensors").rename(mine.weights / "small.safetensors")
    with pytest.raises(
        ModelError, match=r"weights file '.*/weights/small.safetensors' does not fit the model: .* missing"
    ):
        run(mine, tmp_path)


def test_missing_and_ambiguous_weights(mine: World, tmp_path: Path) -> None:
    expected = r"lacks resnet18.safetensors \(or .pth\) for ResNet-18; resnet50.safetensors .* for ResNet-50: put"
    with pytest.raises(ModelError, match=expected):
        run(mine, tmp_path, only=["ResNet-18", "resnet50"])
    shutil.copy(mine.weights / "small.safetensors", mine.weights / "small-2.safetensors")
    with pytest.raises(ModelError, match=r"has 2 files for small: small-2.safetensors, small.safetensors; leave one"):
        run(mine, tmp_path)


def test_classes_of_a_head_are_the_rows_of_its_weight(tmp_path: Path) -> None:
    """Of a linear layer or a 1×1 convolution, under any prefix; a norm of that name has none."""
    from rankscope.reproduce.networks import _head_rows

    held = {"body.weight": torch.zeros(7, 3), "fc.weight": torch.zeros(5, 3), "model.fc.bias": torch.zeros(5)}
    held |= {"net.classifier.1.weight": torch.zeros(4, 3, 1, 1), "norm.weight": torch.zeros(6)}
    save_file(held, tmp_path / "w.safetensors")
    rows = {"fc": 5, "classifier.1": 4, "norm": None, "ody": None, "head": None}
    assert {name: _head_rows(tmp_path / "w.safetensors", name) for name in rows} == rows


@pytest.mark.parametrize(
    "own", ["resnet18.safetensors", "resnet18-f37072fd.pth", "resnet18.a1_in1k.pth", "ResNet-18.pt"]
)
def test_a_file_of_a_longer_name_is_another_networks(own: str, tmp_path: Path) -> None:
    from rankscope.reproduce.networks import Network, _local

    network = Network("ResNet-18", "torchvision:resnet18.IMAGENET1K_V1", None, None)
    (tmp_path / "resnet18d.pth").touch()
    with pytest.raises(ModelError, match=r"lacks resnet18.safetensors \(or .pth\) for ResNet-18"):
        _local([network], tmp_path)
    (tmp_path / own).touch()
    (found,) = _local([network], tmp_path)
    assert found.file == tmp_path / own


@pytest.mark.parametrize(("name", "slug"), [("ResNet-18", "resnet-18"), ("hf:my/net.", "hf-my-net"), (".a b-", "a-b")])
def test_folders_of_networks_are_plain_names(name: str, slug: str) -> None:
    from rankscope.reproduce.networks import Network

    assert Network(name, "", None, None).slug == slug


def test_damaged_weights(mine: World, tmp_path: Path) -> None:
    (mine.weights / "small.safetensors").write_bytes(b"no tensors")
    with pytest.raises(
        ModelError, match=r"weights file '.*/weights/small.safetensors' is no readable safetensors file"
    ):
        run(mine, tmp_path)


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, whatever machine this runs on."""
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("nothing_kept")
def test_all_pretrained_weights_that_are_missing_are_named_at_once(
    mine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network nothing is tried: one line names each network, what to fetch and what to call it."""
    from rankscope.reproduce import fetching

    monkeypatch.setattr(fetching, "unreachable", lambda _: True)
    command = ["reproduce", "fig2", "--imagenet", str(mine.images), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: fig2: pretrained weights of ResNet-18, ResNet-50, GluMixer-24, ResMLP-S24, ViT-T, Swin-T are not on "
    )
    assert re.search(
        r"ResNet-18: fetch \S+/resnet18-\w+\.pth as resnet18\.pth; ResNet-50: fetch \S+ as resnet50\.pth;", line
    )
    assert "ViT-T: save timm.create_model('vit_tiny_patch16_224.augreg_in21k_ft_in1k', pretrained=True)" in line
    for stem in ("gmixer_24_224", "resmlp_24_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        assert f" as {stem}.pth" in line
    assert line.endswith("Put the files into a folder and give --weights FOLDER, or leave networks out with --only")
    # what is in the cache is not asked for; a file's factory needs none
    kept = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(ModelError, match=r"^table1: pretrained weights of ResNet-50, timm:resnet10t are not on"):
        run(mine, tmp_path, weights=None, networks=[mine.net, "timm:resnet10t"], only=["ResNet-18", "ResNet-50"])


@pytest.mark.usefixtures("nothing_kept")
def test_what_has_no_weights_to_fetch_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.models

    from rankscope.reproduce.fetching import is_kept

    assert not is_kept("timm:resnet10t")
    for config in (None, SimpleNamespace(hf_hub_id=None)):
        monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _, config=config: config)
        assert is_kept("timm:resnet10t")  # the loader will say that there are none


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "odd.pth"])
def test_weights_in_the_cache_count_in_each_of_their_formats(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import timm.models

    from rankscope.reproduce.fetching import is_kept

    config = SimpleNamespace(hf_hub_id="timm/some-net", hf_hub_filename="odd.pth" if file == "odd.pth" else None)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: config)
    assert not is_kept("some_net")

    def cached(repository: str, name: str) -> str | None:
        return f"/cache/{name}" if (repository, name) == ("timm/some-net", file) else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert is_kept("some_net")


@pytest.mark.usefixtures("nothing_kept")
def test_a_download_that_fails_names_the_others_too(
    mine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host's name resolves and nothing comes: the loader's reason, this command's remedy."""
    from rankscope.reproduce import fetching, networks

    def offline(spec: str, **_: Any) -> Any:
        raise NotFetchedError(f"weights of {spec} could not be fetched (no answer)", "use random ones")

    monkeypatch.setattr(networks, "load_model", offline)
    monkeypatch.setattr(fetching, "unreachable", lambda _: False)
    expected = (
        r"could not be fetched \(no answer\): .* ResNet-18: fetch \S+ as resnet18.pth; ViT-T: save .* as vit_tiny"
    )
    with pytest.raises(ModelError, match=expected) as told:
        run(mine, tmp_path, weights=None, networks=[], only=["ResNet-18", "ViT-T"])
    assert "random" not in str(told.value)


def test_names_that_are_no_network_of_the_paper(mine: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only 'ResNet-19' is none of the paper's networks; did you mean 'ResNet-1"):
        run(mine, tmp_path, only=["ResNet-19"])
    with pytest.raises(UsageError, match="no network is left: this experiment has ResNet-18, ResNet-50 and only"):
        run(mine, tmp_path, "fig1a", only=["ViT-T"], networks=[])


def test_too_small_a_limit(mine: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="limit 9 leaves classes of 10 without an image"):
        run(mine, tmp_path, limit=9)
    with pytest.raises(UsageError, match=r"images 50, but '.*' has 40; give a number up to that"):
        run(mine, tmp_path, "fig1a", images=50)
    (mine.images / "class1" / "2.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"images 40, but '.*' has 39 that can be read; give"):
        run(mine, tmp_path, "fig1a", images=40)


@pytest.mark.parametrize(("name", "more"), [("fig1a", {"images": 41}), ("table1", {"limit": 9})])
def test_counts_are_refused_before_a_network_is_loaded(
    mine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: dict[str, int]
) -> None:
    from rankscope.reproduce import measured

    monkeypatch.setattr(measured, "load", lambda *_: pytest.fail("a network was loaded"))
    with pytest.raises(UsageError, match=f"{next(iter(more))} {next(iter(more.values()))}"):
        run(mine, tmp_path, name, **more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fig1d", "fig1e", "fig1f", "fig3"])
@pytest.mark.parametrize(
    "option", [("--imagenet", "."), ("--weights", "."), ("--networks", "timm:test_vit"), ("--only", "none"),
               ("--limit", "3"), ("--images", "3")],
)  # fmt: skip
def test_what_needs_no_data_refuses_options_of_data(
    name: str, option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", name, *option, "--scale", "small", "--out", str(tmp_path / "out")]) == 2
    said = f"error: {name} has no use for {option[0]}: it needs neither images nor networks; leave it out\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "out").exists()


def test_each_number_of_images_has_its_figures(mine: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fig1b has no use for limit: images sets how many it measures; leave"):
        run(mine, tmp_path, "fig1b", limit=20)
    with pytest.raises(UsageError, match="fig2 has no use for images: limit sets how many of the folder"):
        run(mine, tmp_path, "fig2", images=2)


def test_networks_that_do_not_exist_are_named_before_their_files(mine: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="timm has no model 'nosuchnet'"):
        run(mine, tmp_path, networks=["timm:nosuchnet"])
    with pytest.raises(UsageError, match=r"torchvision has no classification model 'resnet19'; did you mean 'resnet1"):
        run(mine, tmp_path, networks=["torchvision:resnet19"])
    with pytest.raises(ModelError, match=r"model file 'no/such.py' does not exist"):
        run(mine, tmp_path, networks=["no/such.py:net"])
    with pytest.raises(UsageError, match="model source 'tim' is unknown; did you mean 'timm'"):
        run(mine, tmp_path, networks=["tim:resnet18"])


def test_images_below_a_class_folder_are_taken(mine: World, tmp_path: Path) -> None:
    """As image folders are usually read; the unreadable one is named with its whole way."""
    below = mine.images / "class3" / "sub" / "deeper"
    below.mkdir(parents=True)
    (mine.images / "class3" / "0.png").rename(below / "0.png")
    (below / "1.png").write_bytes(b"")
    folders = read_class_folders(mine.images)
    held = [str(Path(f).relative_to(mine.images)) for f, label in folders.files if label == 3]
    assert held == [f"class3/{n}" for n in ("1.png", "2.png", "3.png", "sub/deeper/0.png", "sub/deeper/1.png")]
    found = run(mine, tmp_path)
    assert (found.values["images"][0], found.values["skipped"][0]) == (40, 1)
    (fact,) = of_kind(found.facts, FactKind.IMAGES_UNREADABLE)
    assert (fact["network"], fact["files"][0][0]) == ("small", "class3/sub/deeper/1.png")
    assert any("1 image could not be read and was left out: class3/sub/deeper/1.png (" in n for n in found.notes)


def test_links_are_followed_once_and_hidden_folders_are_not(mine: World, tmp_path: Path) -> None:
    """The same files for the passes over the folder and for the images of Fig. 1 (a-c)."""
    (mine.images / "class3").rename(tmp_path / "elsewhere")
    (mine.images / "class3").symlink_to(tmp_path / "elsewhere")
    (mine.images / "class4" / "above").symlink_to(mine.images)
    (mine.images / "class4" / "itself").symlink_to(mine.images / "class4")
    shutil.copytree(mine.images / "class5", mine.images / "class5" / ".hidden")
    listed = [str(Path(f).relative_to(mine.images)) for f, _ in read_class_folders(mine.images).files]
    assert listed == [f"class{c}/{i}.png" for c in range(10) for i in range(4)]
    assert list(load_images(mine.images, preprocessing=plain_preprocessing((3, 32, 32))).names) == listed


def test_a_limit_is_spread_over_the_classes(mine: World) -> None:
    folders = read_class_folders(mine.images)
    counts = torch.bincount(torch.tensor([label for _, label in folders.draw(25, 0)]), minlength=10)
    assert sorted(set(counts.tolist())) == [2, 3]
    assert folders.draw(25, 0) != folders.draw(25, 1)
    assert folders.draw(25, 0) == sorted(folders.draw(25, 0), key=lambda one: one[1])


def test_grey_networks_take_grey_images_as_they_are(tmp_path: Path) -> None:
    from rankscope.reproduce.converted import converted_images

    modes = ["L", "RGB", "LA", "RGB"]
    files = [str(tmp_path / f"{i}.png") for i in range(len(modes))]
    for mode, file in zip(modes, files, strict=True):
        Image.new(mode, (8, 8)).save(file)
    (tmp_path / "torn.png").write_bytes(b"no image")
    files.append(str(tmp_path / "torn.png"))
    assert converted_images(tmp_path, files, 1) == [["RGB", 2, "1.png"], ["LA", 1, "2.png"]]
    assert converted_images(tmp_path, files, 3) == [["L", 1, "0.png"], ["LA", 1, "2.png"]]


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
    assert (
        "4 images were converted to RGB: 1 of mode L (class0/0.png), 1 of mode CMYK (class0/1.jpg), 1 of mode RGBA, "
        "transparency dropped (class0/2.png), 1 of mode P (class0/3.gif)."
    ) in found.notes
    note = next(n for n in found.notes if "could not be read" in n)
    assert note.startswith("small: 2 images could not be read and were left out: class1/2.png (")
    assert "class2/0.png (" in note
    drawn = run(mine, tmp_path, "fig1a", images=40, weights=mine.weights)
    assert len(drawn.settings["networks"][0]["images"]) == 40
    assert any("2 images could not be read" in n for n in drawn.notes)
    assert any(n.startswith("4 images were converted to RGB: 1 of mode L (class0/0.png), ") for n in drawn.notes)


def test_an_accuracy_of_chance_is_remarked(mine: World, tmp_path: Path) -> None:
    """Folders in another order than the head's: the numbers come out, the note says what is wrong."""
    for c in range(10):
        (mine.images / f"class{c}").rename(mine.images / f"{'zyxwvutsrq'[c]}")
    found = run(mine, tmp_path)
    (fact,) = of_kind(found.facts, FactKind.LIKE_GUESSING)
    assert fact.caution
    assert (fact["network"], fact["classes"]) == ("small", 10)
    start, end = "not clearly above guessing among 10 classes (10.00%", "Check that the class folders are in the order"
    assert any(start in n and end in n for n in found.notes)


@pytest.mark.parametrize(
    ("right", "samples", "classes", "said"),
    [
        (40, 60, 3, ""),  # 66.67%: chance is 33.33%, its standard error 6.09%, so guessing ends at 57.68%
        (34, 60, 3, "not clearly above guessing among 3 classes (33.33%; four standard errors above it is 57.68%)"),
        (35, 60, 3, ""),
        (100, 100, 2, ""),
        (71, 100, 2, ""),  # guessing ends at 70%
        (70, 100, 2, "not clearly above guessing among 2 classes (50.00%; four standard errors above it is 70.00%)"),
        (
            12,
            12,
            2,
            "12 images are too few to distinguish an accuracy of 100.00% from guessing among 2",
        ),
        (3, 12, 2, "accuracy of 25.00% on 12 images is not clearly above guessing"),
        (30, 20_000, 1000, "not clearly above guessing among 1,000 classes (0.10%"),
        (5, 5, 1, ""),
    ],
)
def test_chance_is_what_guessing_may_give(right: int, samples: int, classes: int, said: str) -> None:
    found = chance_fact({"accuracy": right / samples, "samples": samples, "classes": classes})
    assert (found == ()) if not said else (len(found) == 1 and said in sentence(found[0]))


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
    assert read_class_folders(tmp_path / "n04486054-n01534433").facts[0] == Fact(FactKind.NOT_IMAGENET, {"classes": 2})


def test_imagenet_with_images_missing_is_remarked(tmp_path: Path) -> None:
    from timm.data.imagenet_info import ImageNetInfo

    for name in ImageNetInfo("imagenet-1k").label_names():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.JPEG").touch()
    found = read_class_folders(tmp_path)
    assert found.facts == (Fact(FactKind.OTHER_COUNT, {"images": 1000, "usual": 50_000}),)
    assert len(found) == 1000
    assert found.names[13] == "junco"
