"""F13: classes that are not the model's, and an accuracy at chance, are named first."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.cli import main
from rankscope.cli.class_data import FolderLabels, folder_labels, read_folder
from rankscope.cli.class_names import class_cautions
from rankscope.cli.data import load_data
from rankscope.loading import LoadedModel, plain_preprocessing
from rankscope.views.sentences import sentence

DIGITS = tuple("0123456789")
WORDS = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")


def logits_for(answers):
    return torch.nn.functional.one_hot(answers, 10).float()


def test_f13_folder_names_of_which_the_head_has_none_are_named():
    y = torch.arange(60) % 10
    (said,) = class_cautions(y, logits_for(y), WORDS, DIGITS)
    assert said == Fact(FactKind.OTHER_CLASS_NAMES, {"data": WORDS, "model": DIGITS}, caution=True)
    assert class_cautions(y, logits_for(y), DIGITS, DIGITS) == ()
    assert class_cautions(y, logits_for(y), WORDS, None) == class_cautions(y, logits_for(y), None, DIGITS) == ()


def test_f13_imagenet_names_match_by_their_first_word():
    y = torch.tensor([0, 1])
    assert class_cautions(y, logits_for(y), ("tench", "goldfish"), ("tench, Tinca tinca", "Goldfish, Carassius")) == ()
    assert class_cautions(y, logits_for(y), ("great_white_shark", "b"), ("great white shark", "b")) == ()


def test_f13_an_accuracy_at_chance_is_named():
    y = torch.arange(60) % 10
    names, chance = class_cautions(y, logits_for((y + 1) % 10), WORDS, DIGITS)
    assert names.kind is FactKind.OTHER_CLASS_NAMES
    assert (chance.kind, chance["accuracy"], chance["share"], chance["answer"]) == (FactKind.AT_CHANCE, 0, 0.1, 0)


def test_f13_collect_says_so_before_the_table(tmp_path, capsys):
    import PIL.Image
    from sklearn.datasets import load_digits

    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    found = load_digits()
    for i in range(40):
        folder = tmp_path / "data" / words[found.target[i]]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (found.images[i] * 15).astype("uint8")
        PIL.Image.fromarray(pixels).resize((32, 32)).save(folder / f"{i}.png")
    out = tmp_path / "out"
    assert main([str(v) for v in ("collect", "digits", "--data", tmp_path / "data", "--out", out)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Caution: None of the data's 10 class names (eight, five, four and 7 more)")
    assert json.loads((out / "collection.json").read_text())["notes"][0] in first


def labels_of(tmp_path: Path, folders: tuple[str, ...], classes: tuple[str, ...]) -> dict[str, int]:
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"a picture")
    loaded = LoadedModel(nn.Linear(2, len(classes)), "net", "hf", "trained", class_names=classes)
    return folder_labels(tmp_path, read_folder(tmp_path), loaded, len(classes)).labels


@pytest.mark.parametrize(
    ("folders", "classes", "right"),
    [
        (("Cat", "Dog"), ("dog", "cat"), (1, 0)),  # by the alphabet every label would be wrong
        (("tench", "cock", "great_white_shark"), ("tench, Tinca tinca", "great white shark", "cock"), (0, 2, 1)),
        (("cat", "Cat"), ("Cat", "dog", "cat"), (2, 0)),  # as written before plainly
        (("Dog",), ("cat", "bird", "dog"), (2,)),
    ],
)
def test_f13_folders_named_in_another_spelling_are_the_model_s_classes(
    folders: tuple[str, ...], classes: tuple[str, ...], right: tuple[int, ...], tmp_path: Path
) -> None:
    assert labels_of(tmp_path, folders, classes) == dict(zip(folders, right, strict=True))


@pytest.mark.parametrize(
    ("folders", "classes", "words"),
    [
        (("cat", "dog", "horse"), ("dog", "cat", "bird"), "horse' does not name one class of net, .*'cat' would be cl"),
        (
            ("ant", "crane", "tug"),
            ("crane", "tug", "crane"),
            "ant' does not name one class of net, .*'tug' would be cl",
        ),
        # numbers that the model has for other classes, with a folder for every class and with fewer
        (
            ("0", "1", "2"),
            ("1", "2", "three"),
            "0' does not name one class of net, and by its number '1' would be class 1 "
            r"in place of 0; name all folders as the model names its classes \(1, 2, three\)$",
        ),
        (("0", "1"), ("zero", "two", "1"), "by its number '1' would be class 1 in place of 2"),
    ],
)
def test_f13_names_of_which_some_are_the_model_s_are_refused_where_the_order_differs(
    folders: tuple[str, ...], classes: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(rs.DataError, match=words):
        labels_of(tmp_path, folders, classes)


def labels_of_numbers(tmp_path: Path, folders: tuple[str, ...], empty: str) -> FolderLabels:
    for name in folders:
        (tmp_path / name).mkdir()
        if name != empty:
            (tmp_path / name / "a.png").write_bytes(b"a picture")
    loaded = LoadedModel(nn.Linear(2, len(folders)), "net", "hf", "trained")
    return folder_labels(tmp_path, read_folder(tmp_path), loaded, len(folders))


@pytest.mark.parametrize(("count", "empty"), [(3, 1), (3, 0), (12, 11)])
def test_folders_of_all_numbers_are_the_classes_also_where_one_is_empty(count: int, empty: int, tmp_path: Path) -> None:
    made = labels_of_numbers(tmp_path, tuple(map(str, range(count))), str(empty))
    assert made.labels == {str(k): k for k in range(count)}
    assert made.names == tuple(map(str, range(count)))
    (fewer,) = (fact for fact in made.facts if fact.kind == FactKind.FEWER_FOLDERS)
    assert set(fewer.values["labels"]) == set(range(count)) - {empty}


@pytest.mark.parametrize("folders", [("1", "2", "3"), ("0", "1", "01"), ("0", "1", "two")])
def test_an_empty_folder_is_refused_where_the_order_gives_the_labels(folders: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(rs.DataError, match="/1' holds no image, and the order of the folders gives the labels"):
        labels_of_numbers(tmp_path, folders, "1")


def test_the_folder_of_each_file_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up all files again for each of 1,000 folders takes minutes."""
    folders, asked = ("c", "a", "b"), []
    for name in (*folders, "."):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "one.png")
    real = os.path.relpath

    def counted(file: str, start: Path) -> str:
        asked.append(file)
        return real(file, start)

    monkeypatch.setattr(os.path, "relpath", counted)
    made = plain_preprocessing((3, 4, 4))
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    loaded = LoadedModel(net, "net", "hf", "trained", preprocessing=made, class_names=folders)
    data = load_data(str(tmp_path), loaded, labels=None, limit=None, seed=0)
    assert [label for _, label in data.dataset] == [1, 2, 0]  # of a, b, c
    (beside,) = of_kind(data.facts, FactKind.BESIDE_FOLDERS)
    assert (beside["count"], beside["first"]) == (1, "one.png")
    monkeypatch.undo()
    every = [tmp_path / name / "one.png" for name in folders] + [tmp_path / "one.png"]
    assert Counter(asked) == {str(file): 1 for file in every}


def test_f13_names_of_which_some_are_unknown_are_named(tmp_path: Path) -> None:
    folders, classes = ("automobile", "bird", "cat"), ("car", "bird", "cat")
    assert labels_of(tmp_path, folders, classes) == {"automobile": 0, "bird": 1, "cat": 2}
    y = torch.tensor([0, 1, 2])
    (said,) = class_cautions(y, logits_for(y), folders, classes)
    assert sentence(said).startswith(
        "1 of the data's 3 class names (automobile) is not among the classes of the model (car, bird, cat). "
    )


def test_f13_names_in_another_order_than_the_model_s_are_named_first() -> None:
    """A data set brings its labels with it: they are places among its own names."""
    y = torch.tensor([0, 1, 2])
    (said,) = class_cautions(y, logits_for(y), ("Cat", "dog", "bird"), ("dog", "cat", "bird, a pet"))
    assert sentence(said).startswith(
        "2 class names of the data have another place in the model: Cat is label 0 of the data, and class 1 of the mod"
    )
