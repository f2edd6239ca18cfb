"""Seconds and memory of the component probe, component by component.

python benchmarks/probe.py --device cuda --scale full --out docs/benchmarks
python benchmarks/probe.py --device cpu --scale small
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from rankscope._base.provenance import device_name, versions
from rankscope.probes import SCALES, ProbeResults, probe_all, standard_components

GOALS = {("cuda", "full"): (180, 100), ("cpu", "small"): (60, None)}  # seconds, GB


def measured(names: Sequence[str], options: dict[str, Any]) -> tuple[ProbeResults, dict[str, str]]:
    """All components behind one random layer; where one fails, the others each by themselves, and what failed."""
    started = time.perf_counter()

    def say(done: int, total: int | None, text: str) -> None:
        print(f"{time.perf_counter() - started:7.1f} s  {done}/{total}  {text}", flush=True)

    try:
        return probe_all(names, progress=say, **options), {}
    except Exception:
        traceback.print_exc()
        print("one component failed; measuring each by itself", flush=True)
    found, failures = [], {}
    for name in names:
        try:
            found.append(probe_all([name], progress=say, **options))
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {failures[name]}", flush=True)
    if not found:
        raise SystemExit("no component could be measured")
    results = tuple(r for part in found for r in part)
    peaks = [part.peak_memory for part in found if part.peak_memory is not None]
    return ProbeResults(results, sum(p.seconds for p in found), max(peaks, default=None)), failures


def table(results: ProbeResults, failures: dict[str, str], device: torch.device, scale: str) -> str:
    about = ", ".join(f"{k} {v}" for k, v in versions().items() if k in ("python", "rankscope", "torch"))
    first = results.results[0]
    shape = "×".join(map(str, first.input_shape))
    lines = [
        f"Device: {device_name(device)}; host: {platform.machine()}, {psutil.cpu_count()} cores; {about}.",
        f"Scale {scale}: {shape}, {first.samples:,} samples (at most {first.sample_limit:,} dimensions can show), "
        f"{first.dtype}, tolerance {first.tolerance}, seed {first.seed}.",
        "",
        "| component | seconds | peak GB | PCA dimension [bounds] | Jacobian rank [bounds] | exact rank ≥ | expected |",
        "|---|---|---|---|---|---|---|",
        f"| before (shared) | | | {_bounded(first.dimension_before)} | {_bounded(first.rank_before)} | | |",
    ]
    for r in results:
        row: dict[str, Any] = r.summary()
        expected = "unknown" if row["expected_exact"] is None else row["expected_exact"]
        peak = "" if r.peak_memory is None else f"{r.peak_memory / 2**30:.1f}"
        lines.append(
            f"| {r.label} | {r.seconds:.2f} | {peak} | {_bounded(r.dimension_after)} | {_bounded(r.rank_after)} | "
            f"{row['exact_rank_at_least']} | {expected} |"
        )
    if results.peak_memory is not None:
        memory = f"{results.peak_memory / 2**30:.1f} GB allocated on the GPU"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB resident"
    seconds, room = GOALS.get((device.type, scale), (None, None))
    goals = [text for value, text in ((seconds, f"{seconds} s"), (room, f"{room} GB")) if value is not None]
    goal = f" (goal {', '.join(goals)})" if goals else ""
    lines += ["", f"In all {results.seconds:.1f} s; peak memory {memory}{goal}."]
    lines += [f"Failed: {name}: {text}" for name, text in failures.items()]
    return "\n".join(lines) + "\n"


def _bounded(estimate: Any) -> str:
    return f"{estimate.value} [{estimate.lower}, {estimate.upper}]" if estimate.certified else f"{estimate.value} [?]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", choices=tuple(SCALES), default="full")
    parser.add_argument("--input-shape", nargs=3, type=int, help="instead of the scale's")
    parser.add_argument("--samples", type=int, help="instead of the scale's")
    parser.add_argument("--components", nargs="+", help="default: the whole standard set")
    parser.add_argument("--out", type=Path, help="folder for probe-<device>-<scale>.md, .json and .png")
    args = parser.parse_args()
    device = torch.device(args.device)
    names = args.components or list(standard_components((4, 2, 2)))
    options = {"scale": args.scale, "device": device, "input_shape": args.input_shape, "samples": args.samples}
    results, failures = measured(names, options)
    text = table(results, failures, device, args.scale)
    print(text)
    print(results)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"probe-{device.type}-{args.scale}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")
        results.plot().figure.savefig(stem.with_suffix(".png"))
    if failures:
        raise SystemExit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
