"""Python code in several processes of one group of ``torch.distributed`` on the CPU (gloo)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["Run", "in_processes", "started"]

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
