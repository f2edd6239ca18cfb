"""Code and commands in processes of their own; those of one group of ``torch.distributed`` are on the CPU (gloo)."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

__all__ = ["COMMAND", "Run", "in_processes", "with_network"]

COMMAND = "import sys; from rankscope.cli import main; sys.exit(main(sys.argv[1:]))"
"""The command line as code, for a process of its own."""
# `waits` says that it is there and goes on once a line arrives, so the order of events is the test's own
_NET = """
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
_BEGIN = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method={method!r}, rank={rank}, world_size={size})
RANK, SIZE = {rank}, {size}
"""
_END = "\ndist.destroy_process_group()\n"
_LIMIT = 300  # seconds: a process that hangs fails the test
_SERVER = multiprocessing.get_context("forkserver")  # conftest.py says what it has imported


@dataclass(frozen=True)
class Run:
    """What one process left: exit code (minus the signal that ended it), standard output and standard error."""

    code: int | None
    out: str
    error: str


def _child(code: str, folder: Path, files: tuple[Path, Path]) -> None:
    """Run ``code`` as ``python -c`` does, in ``folder``, with its two streams in ``files``."""
    for file, stream in zip(files, (1, 2), strict=True):
        with file.open("w") as handle:
            os.dup2(handle.fileno(), stream)
    os.chdir(folder)
    sys.path.insert(0, "")
    torch.set_num_threads(1)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        exec(compile(code, "<string>", "exec"), main.__dict__)
    except Exception:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # torch.distributed puts the rank before each line
        sys.exit(1)


def in_processes(size: int, code: str, folder: Path, *, each: Sequence[str] = ()) -> list[Run]:
    """Run ``code``, which knows RANK and SIZE, in ``size`` processes to its end, each behind its own of ``each``."""
    with tempfile.TemporaryDirectory() as there:
        processes, streams = [], []
        try:
            for rank in range(size):
                begin = _BEGIN.format(method=f"file://{there}/store", rank=rank, size=size)
                own = each[rank] if rank < len(each) else ""
                streams.append((Path(there, f"out{rank}"), Path(there, f"error{rank}")))
                process = _SERVER.Process(target=_child, args=(begin + own + code + _END, folder, streams[-1]))
                process.start()
                processes.append(process)
            end = time.monotonic() + _LIMIT
            for process in processes:
                process.join(max(0.0, end - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [
            Run(process.exitcode, *(file.read_text() for file in files))
            for process, files in zip(processes, streams, strict=True)
        ]


def with_network(folder: Path, more: str = "") -> None:
    """Put ``net.py`` into a folder, with ``more`` code at its end, and arrays for it into ``data.npz``."""
    (folder / "net.py").write_text(_NET + more)
    inputs = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)
    np.savez(folder / "data.npz", inputs=inputs, labels=np.arange(10) % 2)
