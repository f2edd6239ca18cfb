"""The folder of a reader, made once and copied for each page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from documented_world import build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("reader") / "world"
    found.mkdir()
    build_world(found)
    return found


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder and home."""
    folder = tmp_path / "home"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder
