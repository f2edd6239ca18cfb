"""What the command sets for its own process, and for no other."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rankscope.cli import main
from rankscope.cli.allocator import keep_freed_memory

MAIN = sys.modules["rankscope.cli.main"]


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def with_library(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**functions))


def test_both_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    with_library(monkeypatch, mallopt=lambda option, value: asked.update({option: value}) or 1)
    assert keep_freed_memory()
    assert asked == {-1: 268_435_456, -3: 33_554_432}


def test_glibc_takes_them() -> None:
    """The limits of glibc itself: it refuses a threshold for mappings above 32 MB on 64 bits."""
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("needs glibc")
    code = "from rankscope.cli.allocator import keep_freed_memory; print(keep_freed_memory())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "True\n"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_set_holds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with_library(monkeypatch, mallopt=lambda option, value: pytest.fail("set"))
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with_library(monkeypatch)
    assert not keep_freed_memory()


def test_only_the_process_of_a_command_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main(["--version"])`` inside of another program leaves its memory alone."""
    called: list[bool] = []
    monkeypatch.setattr(MAIN, "keep_freed_memory", lambda: called.append(True))
    assert main(["--version"]) == 0
    assert called == []
    monkeypatch.setattr(sys, "argv", ["rankscope", "--version"])
    assert main() == 0
    assert called == [True]
