"""Code and commands in processes of their own; those of one group of ``torch.distributed`` are on the CPU (gloo)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

__all__ = ["COMMAND", "Run", "in_processes", "started", "with_network"]

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


class Run:
    """What one process left: exit code, standard output and standard error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.out, self.error = process.communicate(timeout=_LIMIT)
        self.code = process.returncode


@contextlib.contextmanager
def started(size: int, code: str, folder: Path, *, each: Sequence[str] = ()) -> Iterator[list[subprocess.Popen[str]]]:
    """Inside, ``size`` processes run ``code``, which knows RANK and SIZE; ``each`` is put before it, by process."""
    with tempfile.TemporaryDirectory() as there:
        method = f"file://{there}/store"
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = []
        try:
            for rank in range(size):
                begin = _BEGIN.format(method=method, rank=rank, size=size)
                own = each[rank] if rank < len(each) else ""
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", begin + own + code + _END],
                        cwd=folder,
                        env=env,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def in_processes(size: int, code: str, folder: Path, *, each: Sequence[str] = ()) -> list[Run]:
    """Run ``code`` in ``size`` processes to its end."""
    with started(size, code, folder, each=each) as processes:
        return [Run(process) for process in processes]


def with_network(folder: Path, more: str = "") -> None:
    """Put ``net.py`` into a folder, with ``more`` code at its end, and arrays for it into ``data.npz``."""
    (folder / "net.py").write_text(_NET + more)
    inputs = np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32)
    np.savez(folder / "data.npz", inputs=inputs, labels=np.arange(10) % 2)
