"""Files that are whole or refused, and folders that one run has for itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankscope._base import files, lock
from rankscope._base.errors import OutputError
from rankscope._base.json_files import read_json

HOLDER = """
import sys
from rankscope._base import lock
if sys.argv[2] == "no-locks":
    lock.fcntl = None
with lock.FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(folder: Path, how: str) -> subprocess.Popen[str]:
    """Another process that holds the lock once this returns, until a line is written to it."""
    made = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "held\n"
    return made


@pytest.mark.parametrize("how", ["locks", "no-locks"])
def test_two_processes_exclude_each_other_and_a_dead_one_does_not(tmp_path, monkeypatch, how):
    if how == "no-locks":
        monkeypatch.setattr(lock, "fcntl", None)
    other = holder(tmp_path, how)
    with pytest.raises(OutputError, match=rf"in use by another run \(process {other.pid}\); wait until it ends"):
        lock.FolderLock(tmp_path).__enter__()
    other.communicate("\n")
    with lock.FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []

    killed = holder(tmp_path, how)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / ".profile.json.1.part").write_bytes(b"half")
    with lock.FolderLock(tmp_path):
        assert not list(tmp_path.glob("*.part"))


def test_the_lock_keeps_out_its_own_process_and_opens_after_an_error(tmp_path):
    with lock.FolderLock(tmp_path), pytest.raises(OutputError, match=f"process {os.getpid()}"):
        lock.FolderLock(tmp_path / ".").__enter__()
    with pytest.raises(KeyError, match="x"), lock.FolderLock(tmp_path):
        raise KeyError("x")
    with lock.FolderLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write into .*choose another output folder"):
        lock.FolderLock(tmp_path / "file" / "below").__enter__()


def test_what_was_there_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_whole(path, "old")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left"):
        files.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_r7_a_name_that_is_no_unicode_is_escaped_and_comes_back(tmp_path):
    name = os.fsdecode(b"bad\xff.png")
    for text in (json.dumps({"name": name}), json.dumps({"name": name}, ensure_ascii=False)):
        files.write_whole(tmp_path / "a.json", text)
        assert read_json(tmp_path / "a.json") == {"name": name}
    files.write_whole(tmp_path / "a.csv", f"image,rank\n{name},3\n")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "image,rank\nbad\\udcff.png,3\n"
    files.write_arrays(tmp_path / "a.safetensors", {"x": np.ones(2)}, {"name": json.dumps(name)})
    assert json.loads(files.read_arrays(tmp_path / "a.safetensors")[1]["name"]) == name


ARRAYS = {"sigma": np.linspace(1, 0, 5), "empty": np.zeros((0, 3), np.float32), "n": np.array(3)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_r4_any_flipped_bit_is_refused_or_changes_nothing(tmp_path, where, bit):
    path = tmp_path / "a.safetensors"
    files.write_arrays(path, ARRAYS, {"key": "k", "about": "{}"})
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        arrays, about = files.read_arrays(path)
    except OutputError as error:
        assert "a.safetensors" in str(error)  # noqa: PT017
        return
    # a blank of the header that became another blank
    assert {**about, "checksum": ""} == {"key": "k", "about": "{}", "checksum": ""}
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize("length", [0, 7, 8, 60, -1])
def test_r8_a_file_cut_short_is_refused(tmp_path, length):
    path = tmp_path / "a.safetensors"
    files.write_arrays(path, ARRAYS, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(OutputError, match="cannot be read"):
        files.read_arrays(path)


def test_a_file_without_checksum_is_read_only_where_that_is_allowed(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(2)}, tmp_path / "old.safetensors", {"a": "b"})
    with pytest.raises(OutputError, match="no checksum"):
        files.read_arrays(tmp_path / "old.safetensors")
    assert files.read_arrays(tmp_path / "old.safetensors", unchecked=True)[1] == {"a": "b"}


def test_tensors_and_arrays_of_the_same_content_have_one_digest_and_every_byte_counts():
    for value in (torch.randn(3, 4), torch.zeros(0), torch.tensor(2), torch.tensor([True]), torch.ones(2, 2).T):
        same = files.digest_of_tensors([value.clone()])
        assert files.digest_of_tensors([value]) == same
    base = torch.zeros(300_000)
    seen = {files.digest_of_tensors([base])}
    for place in (0, 1, 149_999, 299_999):
        other = base.clone()
        other[place] = torch.finfo(torch.float32).tiny
        seen.add(files.digest_of_tensors([other]))
    assert len(seen) == 5
    assert files.digest_of_tensors([base]) != files.digest_of_tensors([base.int()])
    assert files.digest_of_tensors([torch.tensor([1j]).conj()]) == files.digest_of_tensors(
        [torch.tensor([complex(0, -1)])]
    )


def test_a_lock_that_is_lent(tmp_path: Path) -> None:
    """What is called inside may take it again, in the same thread, and its end does not release the outer one."""
    refused: list[str] = []

    def other() -> None:
        try:
            lock.FolderLock(tmp_path).__enter__()
        except OutputError as error:
            refused.append(str(error))

    def thread() -> None:
        one = threading.Thread(target=other)
        one.start()
        one.join()

    with lock.FolderLock(tmp_path, lend=True):
        with lock.FolderLock(tmp_path):
            thread()
        thread()
        with lock.FolderLock(tmp_path / "below"), pytest.raises(OutputError, match="in use"):
            lock.FolderLock(tmp_path / "below").__enter__()
    assert len(refused) == 2
    assert all("is in use" in text for text in refused)
    with lock.FolderLock(tmp_path), pytest.raises(OutputError, match="in use"):
        lock.FolderLock(tmp_path).__enter__()


@pytest.mark.parametrize("framework", ["numpy", "pt"])
def test_a_folder_whose_name_is_no_text_is_read_back(tmp_path, framework):
    """The library of safetensors takes paths of Unicode alone; names of files are bytes."""
    path = tmp_path / os.fsdecode(b"bad\xff") / "a.safetensors"
    path.parent.mkdir()
    values = torch.arange(3.0) if framework == "pt" else np.arange(3.0)
    made = files.write_arrays(path, {"a": values}, {"index": "7"})
    arrays, about = files.read_arrays(path, framework)
    assert type(arrays["a"]) is type(values)
    np.testing.assert_array_equal(arrays["a"], values)
    assert about == {"index": "7", "checksum": made} == files.read_about(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OutputError, match="cannot be read"):
        files.read_arrays(path, framework)
