"""Rows R10 and F5 through the command line: two processes, one folder. The first waits on a pipe, not on a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# `waits` says that it is there and goes on once a line arrives, so the order of events is the test's own
NET = """
import sys
import torch
from torch import nn

class Net(nn.Sequential):
    input_size = (3, 4, 4)

def small():
    torch.manual_seed(0)
    return Net(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 2)).eval()

def waits():
    print("inside", file=sys.stderr, flush=True)
    sys.stdin.readline()
    return small()
"""
# the file that follows the shards is written once a line arrives
LATE = """
import sys
from rankscope.cli import main, results
write = results.write_result
def waits(folder, name, *rest, **options):
    if name == "collection":
        print("inside", file=sys.stderr, flush=True)
        sys.stdin.readline()
    write(folder, name, *rest, **options)
results.write_result = waits
sys.exit(main(sys.argv[1:]))
"""
PLAIN = "import sys; from rankscope.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    inputs = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=np.arange(10) % 2)
    return tmp_path


def start(folder: Path, *args: str, code: str = PLAIN) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def profile(factory: str) -> list[str]:
    return ["profile", f"net.py:{factory}", "--weights", "random", "--images", "noise", "--limit", "2", "--out", "run"]


def collect(factory: str) -> list[str]:
    return ["collect", f"net.py:{factory}", "--weights", "random", "--data", "data.npz", "--out", "run"]


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (profile("waits"), profile("small"), PLAIN),
        (collect("waits"), collect("small"), PLAIN),
        (collect("small"), collect("small"), LATE),
    ],
    ids=["profile", "collect", "collection.json"],
)
def test_one_runs_and_the_other_is_told(first: list[str], second: list[str], code: str, folder: Path) -> None:
    with start(folder, *first, code=code) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "inside\n"
        refused = start(folder, *second)
        out, errors = refused.communicate()
        assert refused.returncode == 1
        assert out == ""
        assert len(errors.splitlines()) == 1
        assert errors.startswith(f"error: 'run' is in use by another run (process {running.pid}); ")
        _, errors = running.communicate("go on\n")
        assert running.returncode == 0, errors
    written = "profile.json" if first[0] == "profile" else "collection.json"
    record = json.loads((folder / "run" / written).read_text())
    assert record["model"].endswith(first[1].split(":")[1])
    assert not list((folder / "run").glob(".rankscope-lock*"))
