"""Data sets that ``save_to_disk`` wrote, as ``--data``: the oracle reads the pictures that went in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rankscope as rs
from rankscope.cli.data import Data, check_data, load_data
from rankscope.cli.saved_dataset import read_saved_dataset
from rankscope.features.fingerprint import data_fingerprint
from rankscope.loading import LoadedModel, imagenet_classes, load_images, plain_preprocessing

datasets = pytest.importorskip("datasets")

MADE = plain_preprocessing((3, 4, 4))
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3)).astype("uint8")
LABELS = [2, 0, 1, 1, 0, 2, 2]


def save(folder: Path, **columns: Any) -> Path:
    """Pictures and labels of three classes, with columns changed or taken away."""
    pictures = [Image.fromarray(p) for p in PIXELS]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    held = {"image": pictures, "label": LABELS}
    for name, given in columns.items():
        values, kind = given if given is not None else (None, None)
        held.pop(name, None), kinds.pop(name, None)
        if given is not None:
            held[name], kinds[name] = values, kind
    datasets.Dataset.from_dict(held, features=datasets.Features(kinds)).save_to_disk(folder)
    return folder


def read(folder: Path, names: tuple[str, ...] | None = None, *, classes: int = 3, **options: Any) -> Data:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    loaded = LoadedModel(net, "net", "hf", "trained", preprocessing=MADE, class_names=names)
    return load_data(str(folder), loaded, **({"labels": None, "limit": None, "seed": 0} | options))


@pytest.mark.parametrize(
    ("names", "places", "told"),
    [
        (None, [0, 1, 2], ("cat", "dog", "owl")),
        (("cat", "dog", "owl"), [0, 1, 2], ("cat", "dog", "owl")),
        (("Owl", "cat", "dog"), [1, 2, 0], ("Owl", "cat", "dog")),
        (("a", "b", "c"), [0, 1, 2], ("cat", "dog", "owl")),
    ],
    ids=["no names", "same order", "another order", "other names"],
)
def test_pictures_and_classes(
    names: tuple[str, ...] | None, places: list[int], told: tuple[str, ...], tmp_path: Path
) -> None:
    data = read(save(tmp_path / "saved"), names)
    assert [label for _, label in data.dataset] == [places[label] for label in LABELS]
    for (tensor, _), pixels in zip(data.dataset, PIXELS, strict=True):
        np.testing.assert_allclose(tensor.numpy(), pixels.transpose(2, 0, 1) / 255, atol=1e-7)  # one rounding
    assert data.class_names == told


@pytest.mark.parametrize("known", [False, True], ids=["no names", "the model's words"])
def test_some_of_imagenets_folders_are_the_heads_classes(known: bool, tmp_path: Path) -> None:
    """An image folder of three of them is numbered from 0; the English springer is ImageNet's class 217."""
    kind = datasets.ClassLabel(names=["n01440764", "n02102040", "n02979186"])
    words = imagenet_classes()
    names = tuple(f"{words[1][synset]}, by another name" for synset in words[0]) if known else None
    data = read(save(tmp_path / "saved", label=(LABELS, kind)), names, classes=1000)
    assert [label for _, label in data.dataset] == [(0, 217, 482)[label] for label in LABELS]
    assert data.class_names is not None
    assert (len(data.class_names), data.class_names[217].partition(",")[0]) == (1000, "English springer")
    assert data.class_names == names or not known
    few = read(save(tmp_path / "few", label=(LABELS, kind)), classes=3)  # a head of these three alone
    assert [label for _, label in few.dataset] == LABELS


def test_names_that_are_other_numbers_than_the_labels_are_refused(tmp_path: Path) -> None:
    """As folders 0, 1, 2, …, 10 that were read in the order of the alphabet: 0, 1, 10, 2."""
    kind = datasets.ClassLabel(names=["0", "1", "10"])
    saved = save(tmp_path / "saved", label=(LABELS, kind))
    with pytest.raises(rs.DataError, match=r"class '10' of .* has the label 2, .*could be either; .*cast_column\('lab"):
        read(saved, classes=11)
    assert [label for _, label in read(saved, classes=3).dataset] == LABELS  # no class 10 could be meant
    whole = datasets.load_from_disk(saved).cast_column("label", datasets.Value("int64"))
    whole.save_to_disk(tmp_path / "whole")
    assert [label for _, label in read(tmp_path / "whole", classes=11).dataset] == LABELS


def test_labels_that_are_all_left_out_are_none(tmp_path: Path) -> None:
    data = read(save(tmp_path / "saved", label=([-1] * 7, datasets.ClassLabel(names=["cat", "dog", "owl"]))))
    assert ([label for _, label in data.dataset], data.facts) == ([-1] * 7, ())
    kind = datasets.ClassLabel(names=["cat", "dog", "owl"])
    for gap in (-1, None):
        with pytest.raises(
            rs.DataError,
            match=r"1 of 7 samples have no class \(label -1, first of sample 0",
        ):
            read(save(tmp_path / f"some{gap}", label=([gap, *LABELS[1:]], kind)), ("dog", "cat", "owl"))


def test_a_folder_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    assert len(read(save(tmp_path / "saved")).dataset) == 7
    datasets.load_from_disk(save(tmp_path / "other")).select([3, 0]).save_to_disk(tmp_path / "two")
    shutil.rmtree(tmp_path / "saved")
    (tmp_path / "two").rename(tmp_path / "saved")
    assert [label for _, label in read(tmp_path / "saved").dataset] == [LABELS[3], LABELS[0]]


def test_more_classes_in_the_head_and_a_limit(tmp_path: Path) -> None:
    data = read(save(tmp_path / "saved"), classes=5, limit=3)
    assert data.class_names == ("cat", "dog", "owl", "3", "4")
    chosen = torch.randperm(7, generator=torch.Generator().manual_seed(0))[:3].sort().values
    assert [label for _, label in data.dataset] == [LABELS[i] for i in chosen]


def test_whole_numbers_are_classes_where_their_column_says_so_and_features_need_none(tmp_path: Path) -> None:
    numbers = save(tmp_path / "numbers", label=None, target=(LABELS, datasets.Value("int64")))
    assert [label for _, label in read(numbers).dataset] == LABELS
    alone = save(tmp_path / "alone", label=None)
    for labelled in (False, True):
        assert [label for _, label in read(alone, labelled=labelled).dataset] == [-1] * 7


def test_what_the_files_hold_is_what_identifies_the_data(tmp_path: Path) -> None:
    one, same = (read(save(tmp_path / name)).dataset for name in ("one", "same"))
    before = data_fingerprint(one)
    _ = one[0]  # a used one is the same
    assert data_fingerprint(one) == before
    other = read(
        save(tmp_path / "one2", label=(LABELS[::-1], datasets.ClassLabel(names=["cat", "dog", "owl"])))
    ).dataset
    assert data_fingerprint(other) != before
    assert len(same) == 7


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"other": ([Image.fromarray(p) for p in PIXELS], datasets.Image())},
            r"2 columns of pictures \(image and",
        ),
        (
            {"fine": (LABELS, datasets.ClassLabel(names=list("abc")))},
            r"2 columns of classes \(label and fine\); give --labels label, or another",
        ),
        (
            {"label": None, "kind": (LABELS, datasets.Value("int64"))},
            r"no column that is certain .*: image and kind\); give --labels kind .*select_columns\(\['image'\]\)",
        ),
        (
            {"label": None, "kind": (list("abcabca"), datasets.Value("string"))},
            r"give one the type datasets.ClassLabel \(class_encode_column\) if it holds them",
        ),
        ({"image": None, "text": (["a"] * 7, datasets.Value("string"))}, r"\['text'\]\), and give --text FILE"),
        ({"image": None}, r"without pictures \(its columns: label\); measure it in Python: .*load_from_disk"),
        ({"label": ([9] * 7, datasets.Value("int32"))}, "labels run from 9 to 9, but the head of net has 3 classes"),
    ],
)
def test_what_is_ambiguous_or_no_picture_is_refused(columns: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(rs.DataError, match=message):
        read(save(tmp_path / "saved", **columns))


def test_the_column_of_the_classes_can_be_named(tmp_path: Path) -> None:
    """Where a data set has one integer column under another name, or two of classes."""
    other = [1, 1, 0, 2, 2, 0, 1]
    kind = (other, datasets.Value("int64"))
    one = save(tmp_path / "one", label=None, kind=kind)
    two = save(tmp_path / "two", fine=(other, datasets.ClassLabel(names=["a", "b", "c"])), kind=kind)
    for folder, column in ((one, "kind"), (two, "kind"), (two, "fine")):
        check_data(str(folder), labels=Path(column), limit=None)
        assert [label for _, label in read(folder, labels=Path(column)).dataset] == other
    assert [label for _, label in read(two, labels=Path("label")).dataset] == LABELS
    for column, message in (
        ("kinds", "no column 'kinds' for --labels; did you mean 'kind'"),
        ("image", "is a column of"),
    ):
        with pytest.raises(rs.DataError, match=message):
            read(two, labels=Path(column))


def test_a_row_without_a_class_has_none_whatever_the_model_calls_the_others(tmp_path: Path) -> None:
    saved = save(tmp_path / "saved", label=([None, *LABELS[1:]], datasets.ClassLabel(names=["cat", "dog", "owl"])))
    found = read_saved_dataset(saved, MADE, labelled=True)
    found.places = (1, 2, 0)
    assert [label for _, label in found] == [-1, *(found.places[label] for label in LABELS[1:])]
    assert found.labels() == [-1, *LABELS[1:]]


def test_names_of_which_some_are_other_classes_of_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(rs.DataError, match=r"class 'owl' of --data .* 'cat' would be class 0 in place of 1"):
        read(save(tmp_path / "saved"), ("dog", "cat", "emu"))


def test_splits_name_the_one_to_give(tmp_path: Path) -> None:
    whole = datasets.load_from_disk(save(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "splits")
    with pytest.raises(rs.DataError, match=r"holds splits \(train and test\), not samples; give '.*splits/test'"):
        read(tmp_path / "splits")
    with pytest.raises(rs.DataError, match="is a saved data set of Hugging Face; give its tensors in Python"):
        load_images(tmp_path / "one", preprocessing=MADE)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved")
    next(folder.glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(rs.DataError, match="cannot be read as a saved data set"):
        read(folder)
