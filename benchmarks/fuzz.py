"""Random networks and calls against float64 truths of another hand: is anything certified wrong?

    python benchmarks/fuzz.py --networks 5000 --seed 0 --out FOLDER [--workers 2] [--rooms jacobian features]
    python benchmarks/fuzz.py --only 1234            # one seed again, with everything that can be said of it

Seed s is one random network and one random call of ``rs.jacobian_rank`` on it, compared cut point by cut point and
sample by sample with one float64 reverse pass a row of that sample alone. FOLDER holds one line a seed, so the same
command goes on after it was stopped, and the table as Markdown. 5,000 networks take about an hour on two cores.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small gain nothing from threads


def main() -> int:
    """Exit code 1 where anything was wrong, failed with another error, or was left changed."""
    from fuzzing.campaign import ROOMS, go
    from fuzzing.report import table

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", type=int, default=5000, help="how many seeds (of features: calls)")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for the lines and the table")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rooms", nargs="+", choices=list(ROOMS), default=["jacobian"])
    parser.add_argument("--only", type=int, help="one seed, verbosely")
    arguments = parser.parse_args()
    if arguments.only is not None:
        for room in arguments.rooms:
            print(importlib.import_module(ROOMS[room]).run(arguments.only, verbose=True))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    bad = 0
    seeds = range(arguments.seed, arguments.seed + arguments.networks)
    for room in arguments.rooms:
        print(f"{room}: seeds {seeds.start} to {seeds.stop - 1}", flush=True)
        outcomes = go(room, seeds, arguments.out / f"{room}.jsonl", workers=arguments.workers)
        text = table(outcomes)
        (arguments.out / f"{room}.md").write_text(text + "\n", encoding="utf-8")
        print(text)
        bad += sum(o.status in ("wrong", "raw error", "changed") for o in outcomes)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
