"""Many seeds over a few processes, one whole line a seed, so that a run which was killed goes on."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path

from fuzzing.outcome import Outcome

__all__ = ["ROOMS", "finished", "go"]

ROOMS = {"jacobian": "fuzzing.judge", "features": "fuzzing.feature_calls"}


def finished(path: Path) -> dict[int, Outcome]:
    """What an earlier run left; a last line that is not whole is dropped from the file."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    found = (Outcome.read(line) for line in whole.decode().splitlines())
    return {o.seed: o for o in found}


def _quiet() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def _run(task: tuple[str, int]) -> Outcome:
    room, seed = task
    found: Outcome = importlib.import_module(ROOMS[room]).run(seed)
    return found


def go(room: str, seeds: Iterable[int], path: Path, *, workers: int) -> list[Outcome]:
    """Run the seeds that the file does not hold yet; one line a seed is written and flushed as it is known."""
    done = finished(path)
    wanted = list(seeds)
    left = [(room, s) for s in wanted if s not in done]
    context = multiprocessing.get_context("spawn")
    with path.open("ab") as out, context.Pool(workers, _quiet, maxtasksperchild=500) as pool:
        for count, outcome in enumerate(pool.imap_unordered(_run, left, chunksize=4), 1):
            out.write((outcome.line() + "\n").encode())
            out.flush()
            done[outcome.seed] = outcome
            if outcome.status in ("wrong", "raw error", "changed"):
                print(f"seed {outcome.seed}: {outcome.status}: {outcome.detail[:300]}", flush=True)
            if count % 100 == 0:
                print(f"{count} of {len(left)} done", flush=True)
        os.fsync(out.fileno())
    return [done[s] for s in wanted]
