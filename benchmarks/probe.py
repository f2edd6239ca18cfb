"""Seconds and memory of the component probe, component by component.

python benchmarks/probe.py --device cuda --scale full --out docs/benchmarks
python benchmarks/probe.py --device cpu --scale small
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
from pathlib import Path
from typing import Any

import psutil
import torch

from rankscope._base.provenance import device_name, versions
from rankscope.probes import ProbeResults, probe_all

GOALS = {("cuda", "full"): 180, ("cpu", "small"): 60}


def table(results: ProbeResults, device: torch.device, scale: str) -> str:
    about = ", ".join(f"{k} {v}" for k, v in versions().items() if k in ("python", "rankscope", "torch"))
    shape = "×".join(map(str, results.results[0].input_shape))
    lines = [
        f"Device: {device_name(device)}; host: {platform.machine()}, {psutil.cpu_count()} cores; {about}.",
        f"Scale {scale}: {shape}, {results.results[0].batch:,} samples, {results.results[0].dtype}, seed 0.",
        "",
        "| component | seconds | PCA dimension | Jacobian rank [bounds] | exact rank expected |",
        "|---|---|---|---|---|",
    ]
    first = results.results[0]
    lines.append(f"| before (shared) | | {first.dimension_before.value} | {first.rank_before} | |")
    for r in results:
        row: dict[str, Any] = r.summary()
        expected = "unknown" if row["expected_exact"] is None else row["expected_exact"]
        lines.append(
            f"| {r.label} | {r.seconds:.2f} | {row['dimension_after']} | "
            f"{row['rank_after']} [{row['rank_lower']}, {row['rank_upper']}] | {expected} |"
        )
    if results.peak_memory is not None:
        memory = f"{results.peak_memory / 2**30:.1f} GB allocated on the GPU"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB resident"
    goal = GOALS.get((device.type, scale))
    lines += ["", f"In all {results.seconds:.1f} s{f' (goal {goal} s)' if goal else ''}; peak memory {memory}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--components", nargs="+", help="default: the whole standard set")
    parser.add_argument("--out", type=Path, help="folder for probe-<device>-<scale>.md, .json and .png")
    args = parser.parse_args()
    device = torch.device(args.device)
    results = probe_all(args.components, scale=args.scale, device=device)
    text = table(results, device, args.scale)
    print(text)
    print(results)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"probe-{device.type}-{args.scale}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")
        results.plot().figure.savefig(stem.with_suffix(".png"))


if __name__ == "__main__":
    main()
