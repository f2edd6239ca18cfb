"""A folder that a failed run would leave behind empty, and who waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope._base import lock
from rankscope._base.errors import OutputError
from rankscope._base.lock import FolderLock


def fail(folder: Path, made: str | None = None) -> None:
    def run() -> None:
        with FolderLock(folder):
            if made is not None:
                (folder / made).write_text("result")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        run()


def test_an_error_leaves_no_empty_folder_that_the_lock_made(tmp_path: Path) -> None:
    fail(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_what_was_there_or_was_written_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    fail(tmp_path / "a")
    assert (tmp_path / "a").is_dir()
    fail(tmp_path / "a" / "b", made="half.json")
    assert (tmp_path / "a" / "b" / "half.json").read_text() == "result"
    with FolderLock(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept").is_dir()


def test_a_folder_that_another_run_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked, calls = lock._locked, []

    def removed_before(path: Path) -> tuple[int, Path] | None:
        calls.append(path)
        if len(calls) == 1:
            path.parent.rmdir()
        return locked(path)

    monkeypatch.setattr(lock, "_locked", removed_before)
    with FolderLock(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert len(calls) == 2


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run"):
        with pytest.raises(OutputError, match="in use by another run"), FolderLock(tmp_path / "run"):
            pass
        assert (tmp_path / "run").is_dir()
