"""Foreign code and foreign file systems (rows F12, R6, R7, R11): exit codes, one line, results that are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rankscope.cli import main
from rankscope.cli.class_data import read_folder
from rankscope.loading import load_images, plain_preprocessing

NET = """
import sys
from torch import nn

class Net(nn.Sequential):
    input_size = (3, 8, 8)

def good():
    return Net(nn.Conv2d(3, 2, 3), nn.Flatten())

class Leaves(Net):
    def forward(self, x):
        sys.exit(0)

class Panic(BaseException):
    pass

class Full(Net):
    def forward(self, x):
        raise MemoryError("no room")

class Breaks(Net):
    def forward(self, x):
        raise Panic("inside")

def leaves():
    return Leaves(nn.Conv2d(3, 2, 3), nn.Flatten())

def breaks():
    return Breaks(nn.Conv2d(3, 2, 3), nn.Flatten())

def full():
    return Full(nn.Conv2d(3, 2, 3), nn.Flatten())

def exits():
    sys.exit(0)
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return str(tmp_path / "net.py")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(path, "png")


@pytest.mark.parametrize(
    ("factory", "words"), [("exits", "it ends the program (sys.exit(0))"), ("leaves", "sys.exit"), ("breaks", "inside")]
)
def test_r6_foreign_exits_are_failures(
    net: str, factory: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", f"{net}:{factory}", "--weights", "random", "--out", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]


def test_r11_remedies_are_the_commands_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankscope.cli import run_data

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(run_data, "read_run", full)
    assert main(["deficit", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "fewer --classes or --device cpu" in error
    assert "--patch" not in error


def test_f12_folders_that_tools_leave_are_passed_over(tmp_path: Path) -> None:
    for name in ("2/a.png", "4/b.PNG", "9/c.png", ".ipynb_checkpoints/d.png", "__pycache__/e.png", "2/.ipynb_x/f.png"):
        picture(tmp_path / name)
    (tmp_path / "2" / "._a.png").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "4" / "link.png").symlink_to(tmp_path / "4" / "b.PNG")
    found = read_folder(tmp_path)
    assert found.classes == ("2", "4", "9")
    assert [Path(file).name for file in found.files] == [
        "a.png",
        "b.PNG",
        "link.png",
        "c.png",
    ]
    images = load_images(tmp_path, preprocessing=plain_preprocessing((3, 8, 8)))
    assert images.class_names == ("2", "4", "9")
    assert images.names == ("2/a.png", "4/b.PNG", "4/link.png", "9/c.png")


@pytest.mark.parametrize("name", ["@eaDir", "lost+found", "$RECYCLE.BIN", "__MACOSX", ".Trash-1000"])
def test_f12_folders_that_file_systems_leave_are_no_classes(name: str, tmp_path: Path) -> None:
    """Synology keeps a thumbnail of every picture in a folder beside it, also inside the class folders."""
    for place in (f"2/{name}/a.png", f"{name}/b.png", "2/a.png", "4/b.png"):
        picture(tmp_path / place)
    found = read_folder(tmp_path)
    assert found.classes == ("2", "4")
    assert [Path(file).name for file in found.files] == ["a.png", "b.png"]
    images = load_images(tmp_path, preprocessing=plain_preprocessing((3, 8, 8)))
    assert images.class_names == ("2", "4")
    assert images.names == ("2/a.png", "4/b.png")


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, check=False)


def test_r7_names_that_are_no_text_and_closed_streams(net: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "good.png")
    bad = os.fsencode(tmp_path / "images") + b"/bad\xff.png"
    os.rename(tmp_path / "images" / "good.png", bad)
    command = f"{sys.executable} -m rankscope.cli profile {net}:good --weights random --images images"
    for number, (streams, code) in enumerate(((">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("> /dev/full", 1))):
        done = run(f"{command} --out run{number} {streams}", tmp_path)
        assert done.returncode == code, done.stderr
        record = json.loads((tmp_path / f"run{number}" / "profile.json").read_text())
        assert "bad\\xff.png" in json.dumps(record, ensure_ascii=False).replace("\\\\", "\\")
        assert (tmp_path / f"run{number}" / "report.html").is_file()
    assert "standard output cannot be written" in done.stderr
