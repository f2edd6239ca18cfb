"""A file counts that a data set names in two parts, the folder and the name, in whatever way it keeps the two."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankscope._base import identity_folders
from rankscope._base.identity import identity_of
from rankscope._base.identity_folders import files_below

ROOT = ""  # set by a test


class Data:
    def __init__(self, **own: Any) -> None:
        vars(self).update(own)


class OfAFolder(Data):
    def __getitem__(self, i: int) -> Any:
        return open(os.path.join(ROOT, self.names[i]))


class OfASplit(Data):
    def __getitem__(self, i: int) -> Any:
        return open(os.path.join(self.root, "a", "b", self.names[i]))


class OfStems(Data):
    def __getitem__(self, i: int) -> Any:
        return open(f"{self.root}/a/b/{self.names[i]}.png")


MANY = [f"{i}.txt" for i in range(1000)]
WAYS = {
    "a list": lambda root: Data(root=root, names=["a/b/0.png"]),
    "a tuple among many": lambda root: Data(root=root, names=(*MANY, "a/b/0.png")),
    "a path of pathlib": lambda root: Data(root=Path(root), names=[Path("a") / "b" / "0.png"]),
    "a dictionary": lambda root: Data(root=root, names={"train": {"one": "a/b/0.png"}}),
    "the keys of a dictionary": lambda root: Data(root=root, labels={"a/b/0.png": 1}),
    "pairs": lambda root: Data(root=root, samples=[("a/b/0.png", 1)]),
    "a column": lambda root: Data(root=root, table=pd.DataFrame({"file": ["a/b/0.png"], "label": [1]})),
    "an array of texts": lambda root: Data(root=root, names=np.array(["a/b/0.png"])),
    "an array of objects": lambda root: Data(root=root, names=np.array(["a/b/0.png"], dtype=object)),
    "a split of its own": lambda root: Data(root=root, split="a", folder="b", names=["0.png"]),
    "a split of many names": lambda root: Data(root=root, split="a", folder="b", names=["0.png", *MANY]),
    "a folder within a setting": lambda root: Data(config=Data(folders={"train": root}), names=["./a/b/0.png"]),
    "two objects": lambda root: Data(inner=Data(root=f"{root}/a/"), names=["b/0.png"]),
    "a constant of the module": lambda root: OfAFolder(names=["a/b/0.png"]),
    "constants of the code": lambda root: OfASplit(root=root, names=["0.png"]),
    "a name that leaves its folder": lambda root: Data(root=f"{root}/a/c", names=["../b/0.png"]),
    "a name that leaves two of many folders": lambda root: Data(root=f"{root}/a/c/d", names=[*MANY, "../../b/0.png"]),
    "a name that leaves a folder named in two parts": lambda root: Data(root=root, split="a/c", names=["../b/0.png"]),
    "a folder above": lambda root: Data(root=f"{root}/a/c", images="../b", names=["0.png"]),
    "an ending without a full stop before it": lambda root: Data(root=f"{root}/a/b", names=["0"], ending="_m.png"),
    "an ending in the code": lambda root: OfStems(root=root, names=["0"]),
    "an ending in the code, many names": lambda root: OfStems(root=root, names=["0", *MANY]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_below_a_folder_counts(tmp_path, monkeypatch, way):
    file = tmp_path / "data" / "a" / "b" / "0.png"
    file.parent.mkdir(parents=True)
    (tmp_path / "data" / "a" / "c" / "d").mkdir(parents=True)
    if way == "an ending without a full stop before it":
        file = file.with_name("0_m.png")
    file.write_bytes(b"abc")
    other = file.with_name("other.png")
    root = str(tmp_path / "data")
    monkeypatch.setitem(globals(), "ROOT", root)

    def identity():
        return identity_of(WAYS[way](root), files=True)

    first = identity()
    assert first == identity()
    other.write_bytes(b"abc")  # which nothing names
    assert first == identity()
    times = os.stat(file)
    file.write_bytes(b"abd")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identity() != first
    assert identity().unreadable == ()


def test_a_folder_that_is_named_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.png").write_bytes(b"abc")
    monkeypatch.chdir(tmp_path)
    assert files_below(["data", "0.png"]) == [os.path.join("data", "0.png")]


def test_only_what_is_named_is_looked_at(tmp_path, monkeypatch):
    """Each folder is listed once, however many names and folders there are, and links in a circle end."""
    listed = []
    true = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or true(path))
    classes = [f"class{i}" for i in range(50)]
    for name in classes:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "aside").mkdir()
    names = [f"{name}/{i}.png" for name in classes for i in range(100)]
    assert files_below([str(tmp_path), *classes, *names]) == sorted(str(tmp_path / name / "0.png") for name in classes)
    assert len(listed) <= 1 + 2 * len(classes)
    assert len(files_below([str(tmp_path), "loop", "class0/0.png"])) == 4


def test_names_that_go_up_and_down_end(tmp_path, monkeypatch):
    """Every folder names every other one from beside it: a walk along all ways would take 100⁴ steps."""
    listed = []
    true = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or true(path))
    for i in range(100):
        (tmp_path / f"class{i}").mkdir()
        (tmp_path / f"class{i}" / "0.png").write_bytes(b"")
    found = files_below([str(tmp_path / "class0"), *(f"../class{i}" for i in range(100)), "0.png"])
    assert {os.path.realpath(file) for file in found} == {str(tmp_path / f"class{i}" / "0.png") for i in range(100)}
    assert len(listed) <= 3


def test_a_sentence_is_no_ending(tmp_path, monkeypatch):
    """Each ending costs a look at every file of a folder, and captions start with a full stop too."""
    asked = []
    true = identity_folders._entries
    monkeypatch.setattr(
        identity_folders, "_entries", lambda f, n, endings: asked.append(endings) or true(f, n, endings)
    )
    files_below([str(tmp_path), ". a dog", ".hidden and a text that is long", "_private", "...", ".png", "_b.png"])
    assert asked == [(".png", "_b.png")]


@pytest.mark.parametrize("text", ["", ".", "..", "/", "a\0b", "../1.png", "../../..", "x" * 5000])
def test_a_text_that_names_nothing_within_a_folder(tmp_path, monkeypatch, text):
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert files_below([str(tmp_path / "in"), text]) == []
