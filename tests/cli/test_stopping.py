"""A command that a signal ends: one line on what is kept, the signal's exit code, and the same command continues."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import COMMAND, with_network

from rankscope.cli import main, stopping
from rankscope.features import Collection
from rankscope.jacobian import JacobianProfile, batch, checkpoint

# on a GPU more images are under way when a signal comes, and those are kept too
PROFILE = [
    "profile",
    "net.py:small",
    "--weights",
    "random",
    "--images",
    "noise",
    "--limit",
    "3",
    "--device",
    "cpu",
    "--out",
]
COLLECT = ["collect", "net.py:small", "--weights", "random", "--data", "data.npz", "--shard-size", "2", "--out"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch.BatchMeasurer, "batch_size", lambda *_: 1)


def sends(number: int, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


def stops_after(monkeypatch: pytest.MonkeyPatch, writes: int, number: int, times: int = 1) -> None:
    """The signal comes when so many images have been kept."""
    write, done = checkpoint.Checkpoint.write, []

    def counted(self: checkpoint.Checkpoint, *args: object, **options: object) -> None:
        write(self, *args, **options)
        done.append(1)
        if len(done) == writes:
            sends(number, times)

    monkeypatch.setattr(checkpoint.Checkpoint, "write", counted)


def spectra(folder: str) -> list[np.ndarray]:
    return [s.singular_values for layer in JacobianProfile.load(folder).layers for s in layer.spectra]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_profile_says_what_is_kept_and_continues(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    assert main([*PROFILE, "whole"]) == 0
    with monkeypatch.context() as patched:
        stops_after(patched, 2, number)
        capsys.readouterr()
        assert main([*PROFILE, "run"]) == 128 + number
    error = capsys.readouterr().err
    assert error == "interrupted: 2 of 3 images are kept in run/partial; the same command continues from there\n"
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert main([*PROFILE, "run"]) == 0
    assert "The results of 2 of 3 images were read back from an earlier run." in capsys.readouterr().out
    assert {f.name for f in Path("run").iterdir()} == {f.name for f in Path("whole").iterdir()}
    for one, other in zip(spectra("run"), spectra("whole"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_collection_says_what_is_kept_and_continues(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankscope.features.shards import ShardStore

    command = [*COLLECT[:-1], "--batch-size", "1", "--cut-points", "1,3", "--out"]
    assert main([*command, "whole"]) == 0
    append = ShardStore.append

    def stopped(self: ShardStore, index: int, *rest: object) -> None:
        append(self, index, *rest)
        if index == 1:
            sends(number)

    with monkeypatch.context() as patched:
        patched.setattr(ShardStore, "append", stopped)
        capsys.readouterr()
        assert main([*command, "run"]) == 128 + number
    assert capsys.readouterr().err == (
        "interrupted: 4 of 10 samples are kept in run; the same command continues after them\n"
    )
    assert main([*command, "run"]) == 0
    one, other = Collection.load("run"), Collection.load("whole")
    for name in ("features", "logits", "labels", "indices"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.moments.keys() == other.moments.keys() == {"1", "3"}
    for name, moments in one.moments.items():
        assert torch.equal(moments.scatter, other.moments[name].scatter)


def test_a_second_signal_at_once_does_not_stop_the_first_from_speaking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopping, "_AGAIN", math.inf)
    stops_after(monkeypatch, 2, signal.SIGTERM, times=3)
    assert main([*PROFILE, "run"]) == 143
    assert capsys.readouterr().err.startswith("interrupted: 2 of 3 images are kept in run/partial; ")


def test_a_later_signal_ends_what_hangs_on_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopping, "_AGAIN", 0.0)
    stops_after(monkeypatch, 2, signal.SIGTERM)
    monkeypatch.setattr(checkpoint, "kept_images", lambda folder: sends(signal.SIGINT))
    assert main([*PROFILE, "run"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"


def test_while_results_are_written_every_image_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankscope.cli import results

    with monkeypatch.context() as patched:
        patched.setattr(results, "write_figure", lambda *_: sends(signal.SIGTERM))
        assert main([*PROFILE, "run"]) == 143
    assert "interrupted: 3 of 3 images are kept in run/partial; " in capsys.readouterr().err
    assert main([*PROFILE, "run"]) == 0
    assert not Path("run/partial").exists()


def test_images_of_an_earlier_run_are_named_when_nothing_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankscope.cli.network import Network

    with monkeypatch.context() as patched:
        stops_after(patched, 1, signal.SIGINT)
        assert main([*PROFILE, "run"]) == 130
    capsys.readouterr()
    monkeypatch.setattr(Network, "load", lambda *_: sends(signal.SIGINT))
    assert main([*PROFILE, "run"]) == 130
    error = capsys.readouterr().err
    assert error == "interrupted: no image was finished; 1 image of an earlier run is kept in run/partial\n"


def test_images_of_another_question_do_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for layer, writes in (("3", 3), ("2", 1)):
        with monkeypatch.context() as patched:
            stops_after(patched, writes, signal.SIGINT)
            assert main([*PROFILE, "run", "--cut-points", layer]) == 130
        assert f"interrupted: {writes} of 3 images " in capsys.readouterr().err


def test_a_signal_that_the_caller_ignores_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stops_after(monkeypatch, 1, signal.SIGHUP)
        assert main([*PROFILE, "run"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_that_keeps_nothing_starts_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankscope.cli.source import Source

    monkeypatch.setattr(Source, "load", lambda *_, **__: sends(signal.SIGTERM))
    command = ["features", "net.py:small", "--weights", "random", "--data", "data.npz", "--out", "run"]
    assert main(command) == 143
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"
    assert not Path("run").exists()


def ran(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


def test_a_signal_while_the_commands_are_imported_is_one_line() -> None:
    code = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
    done = ran(code + COMMAND, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; the same command starts again\n")


def test_a_process_that_was_forked_inside_ends_by_the_signal() -> None:
    code = """
import os, signal
from rankscope.cli.stopping import Stopping
with Stopping():
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""
    done = ran(code)
    assert (done.stdout, done.stderr) == (f"{int(signal.SIGTERM)}\n", "")


def test_a_process_in_its_last_moments_prints_no_traceback() -> None:
    code = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
from rankscope.cli import main
sys.exit(main())
"""
    done = ran(code, "--version")
    assert done.stdout.startswith("rankscope ")
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""


@pytest.mark.parametrize("command", [PROFILE, COLLECT])
def test_a_kill_leaves_nothing_that_stays(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The process is gone in the middle of a write; the next run finds no lock and takes the half file away."""
    code = f"""
import os, signal
from rankscope._base import files
replace, seen = os.replace, []
def killed(source, to):
    seen.append(to)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, to)
os.replace = killed
import sys
from rankscope.jacobian import batch
batch.BatchMeasurer.batch_size = lambda *_: 1
{COMMAND}
"""
    assert ran(code, *command, "run").returncode == -signal.SIGKILL
    parts = [path for path in Path("run").rglob("*") if path.name.endswith(".part")]
    assert parts
    assert main([*command, "whole"]) == 0
    again = ran(COMMAND, *command, "run")  # as a user would: what other tests patched is not here
    assert again.returncode == 0, again.stderr
    left = {path.relative_to("run") for path in Path("run").rglob("*")}
    assert left == {path.relative_to("whole") for path in Path("whole").rglob("*")}
    shutil.rmtree("run")
