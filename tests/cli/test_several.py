"""The command line in several processes: one speaks and writes, and all end together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import COMMAND

from rankscope.cli import main

PROFILE = ["profile", "net.py:small", "--weights", "random", "--images", "noise", "--limit", "4", "--out", "run"]
COLLECT = ["collect", "net.py:small", "--weights", "random", "--data", "data.npz", "--out", "run", "--shard-size", "4"]
COLLECT += ["--batch-size", "4"]
# the second process dies when it has handed on its first image, and the first has waited for that
DIES = """
import os, signal
from rankscope.jacobian import sharing_out
def dies(self, *values, then=sharing_out.SharedOut._write):
    then(self, *values)
    os.kill(os.getpid(), signal.SIGKILL)
sharing_out.SharedOut._write = dies
"""
WAITS = """
from rankscope.jacobian import sharing_out
def waits(self, *values, then=sharing_out.SharedOut._mine):
    while not self._arrived:
        self.company._pause()
    return then(self, *values)
sharing_out.SharedOut._mine = waits
"""

# the second process ends itself once it has handed on its first image, as a launcher or Ctrl-C would
SIGNALLED = DIES.replace("signal.SIGKILL", "signal.{name}")


def torchrun(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rankscope"]
    return subprocess.run([*command, *args], cwd=folder, capture_output=True, text=True, timeout=300)


def by_hand(folder: Path, args: list[str], *codes: str) -> list[tuple[int, str, str]]:
    """Each process with code of its own before the command: exit code, standard output and standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, code in enumerate(codes):
        number = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(codes))}
        env = {**os.environ, **number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code + COMMAND, *args],
                cwd=folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, error) for p, (out, error) in zip(processes, said, strict=True)]


def test_profile(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = torchrun(folder, *PROFILE, "--json")
    assert run.returncode == 0, run.stderr
    shared = json.loads(run.stdout)  # said by one process: two would make no JSON
    monkeypatch.chdir(folder)
    assert main([*PROFILE[:-1], "alone", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["rank"]) for each in shared["layers"]] == [
        (each["name"], each["rank"]) for each in alone["layers"]
    ]
    assert shared["images"] == alone["images"]
    assert {f.name for f in (folder / "run").iterdir()} == {f.name for f in (folder / "alone").iterdir()}


def test_collect(folder: Path) -> None:
    run = torchrun(folder, *COLLECT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("10 samples") == 1
    # one process without a launcher takes the finished collection as its own
    command = [sys.executable, "-m", "rankscope", *COLLECT, "--json"]
    alone = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["resumed"] == 10


def test_a_process_that_is_killed(folder: Path) -> None:
    (first, _, error), (second, _, _) = by_hand(folder, PROFILE, WAITS, DIES)
    assert (first, second) == (1, -9), error
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "process 1" in lines[0]
    assert lines[0].endswith("kept in run/partial; the same command continues from there")
    kept = len(list((folder / "run" / "partial").glob("image-*")))
    assert kept
    done = torchrun(folder, *PROFILE)
    assert done.returncode == 0, done.stderr
    assert f"{kept} of 4 images" in done.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_interrupt_of_one_process_ends_all(name: str, folder: Path) -> None:
    (first, _, error), (second, _, silent) = by_hand(folder, PROFILE, WAITS, SIGNALLED.format(name=name))
    assert (first, second) == (130, 130), error
    lines = [line for said in (error, silent) for line in said.splitlines() if "interrupted" in line]
    assert len(lines) == 1
    assert lines[0].startswith("interrupted: ")
    assert lines[0].endswith("kept in run/partial; the same command continues from there")


def test_an_error_is_said_once(folder: Path) -> None:
    codes, outs, errors = zip(*by_hand(folder, [*PROFILE, "--cut-points", "nowhere"], "", ""), strict=True)
    assert codes == (2, 2)
    assert outs == ("", "")
    lines = [line for error in errors for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "nowhere" in lines[0]


def test_what_several_processes_cannot_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(PROFILE) == 2
    assert "RANK, MASTER_ADDR, MASTER_PORT are not set; start the command with torchrun" in capsys.readouterr().err
    assert main(["features", "run"]) == 2
    assert "rankscope features works in one process" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["--version"]) == 0
