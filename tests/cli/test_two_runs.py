"""Rows R10 and F5 through the command line: two processes, one folder. The first waits on a pipe, not on a clock."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import COMMAND, with_network

from rankscope.cli import main
from rankscope.features import Collection, feature_rank

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


def start(folder: Path, *args: str, code: str = COMMAND) -> subprocess.Popen[str]:
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
        (profile("waits"), profile("small"), COMMAND),
        (collect("waits"), collect("small"), COMMAND),
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


# every other command that writes a folder: the run that has it is this test's own process
OTHERS = {
    "clsdim": ["clsdim", "kept", "--out", "run"],
    "deficit": ["deficit", "kept", "--out", "run"],
    "features": ["features", "net.py:small", "--weights", "random", "--data", "data.npz", "--out", "run"],
    "features of a run": ["features", "kept", "--out", "run"],
    "probe": ["probe", "relu", "--input-shape", "4x2x2", "--samples", "8", "--out", "run"],
    "remedies": ["probe", "--remedies", "--out", "run"],
    "theory chain": ["theory", "chain", "--width", "4", "--depth", "3", "--out", "run"],
    "theory exponents": ["theory", "exponents", "net.py:square", "--weights=random", "--images=noise", "--out", "run"],
    "reproduce": ["reproduce", "fig1d", "--scale", "small", "--out", "run"],
    "demo": ["demo", "--out", "run"],
    "compare": ["compare", "one.json", "two.json", "--out", "run"],
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collected run, and a network whose blocks are square."""
    folder = tmp_path_factory.mktemp("kept")
    square = "\ndef square():\n    return Net(nn.Flatten(), *(nn.Linear(48, 48) for _ in range(3)))\n"
    with_network(folder, square)
    with contextlib.chdir(folder):
        assert main([*collect("small")[:-1], "kept"]) == 0
        for name in ("one.json", "two.json"):
            feature_rank(Collection.load("kept")).save(name)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_in_use_is_left_alone(name: str, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process has the folder: the command is told so and writes nothing into it."""
    hold = (
        "import sys; from rankscope._base.lock import FolderLock\n"
        "with FolderLock('run'):\n    print('inside', flush=True)\n    sys.stdin.readline()"
    )
    capsys.readouterr()
    with start(kept, code=hold) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "inside\n"
        with contextlib.chdir(kept):
            code = main(OTHERS[name])
        out, errors = capsys.readouterr()
        assert {path.name for path in (kept / "run").iterdir()} == {".rankscope-lock"}
        running.communicate("go on\n")
    assert (code, out) == (1, "")
    assert errors.splitlines()[-1].startswith(f"error: 'run' is in use by another run (process {running.pid}); ")


@pytest.mark.parametrize(
    "name", ["clsdim", "deficit", "features", "features of a run", "probe", "theory chain", "compare"]
)
def test_a_folder_is_free_again(name: str, kept: Path, tmp_path: Path) -> None:
    with contextlib.chdir(kept):
        for _ in range(2):
            assert main([*OTHERS[name][:-1], str(tmp_path / "again")]) == 0
    assert list((tmp_path / "again").glob("*.json"))
    assert not list((tmp_path / "again").glob(".rankscope-lock*"))
