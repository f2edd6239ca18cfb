"""A package's code is its version wherever an installer put it; what may still be edited counts as it is written."""

from __future__ import annotations

import datetime
import importlib
import sys
import zipfile
from pathlib import Path

import pytest
from torch import nn

from rankscope._base.identity import identity_of
from rankscope._base.installed import code_is_installed, module_version

CODE = "def f(x):\n    return x * 2\n"


@pytest.fixture
def lib(tmp_path, monkeypatch):
    folder = tmp_path / "anywhere"
    folder.mkdir()
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] in ("bought", "mine")]:
        del sys.modules[name]
    module_version.cache_clear()
    code_is_installed.cache_clear()


def _write(folder: Path, record: str, files: dict[str, str], code: str = CODE) -> None:
    (folder / "bought").mkdir(exist_ok=True)
    (folder / "bought" / "__init__.py").write_text(code)
    (folder / "mine.py").write_text(code)
    (folder / record).mkdir(exist_ok=True)
    about = {"METADATA": "Name: bought\nVersion: 1.5\n", "PKG-INFO": "Name: bought\nVersion: 1.5\n"}
    for name, content in {**about, **files}.items():
        (folder / record / name).write_text(content)


LISTED = {"RECORD": "bought/__init__.py,,\nbought-1.5.dist-info/METADATA,,\n"}


@pytest.mark.parametrize(
    ("record", "files", "installed"),
    [
        ("bought-1.5.dist-info", LISTED, True),
        ("bought-1.5.dist-info", {}, True),  # without a list of files, by the name of its module
        ("bought-1.5-py3.11.egg-info", {"top_level.txt": "bought\n"}, True),
        ("bought.egg-info", {"top_level.txt": "bought\n", "SOURCES.txt": "bought/__init__.py\n"}, False),  # a build
        ("other-1.5.dist-info", {"RECORD": "other.py,,\n"}, False),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_a_distribution_is_what_has_a_record(lib, monkeypatch, record, files, installed, archive):
    _write(lib, record, files)
    if archive:
        whole = lib.with_suffix(".zip")
        with zipfile.ZipFile(whole, "w") as made:
            for file in lib.rglob("*"):
                made.write(file, file.relative_to(lib))
        lib = whole
    monkeypatch.syspath_prepend(str(lib))
    bought, mine = importlib.import_module("bought"), importlib.import_module("mine")
    assert str(lib) in str(bought.__file__)
    assert code_is_installed(str(bought.__file__)) is installed
    assert module_version("bought") is not None if installed else module_version("bought") is None
    assert not code_is_installed(str(mine.__file__))  # beside it, of the user's own
    assert module_version("mine") is None


def test_a_name_of_a_folder_does_not_make_code_installed(tmp_path):
    for name in ("site-packages", "dist-packages"):
        assert not code_is_installed(str(tmp_path / name / "mine.py"))


class Compiled:
    api = datetime.datetime_CAPI


def test_a_pointer_to_compiled_code_can_be_compared_and_one_that_an_object_holds_cannot():
    assert identity_of(Compiled()).unreadable == ()
    net = nn.Identity()
    net.pointer = Compiled.api
    assert identity_of(net).unreadable == ("builtins.PyCapsule",)
