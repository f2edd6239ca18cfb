"""Images and whole Jacobians in one process and in several: ``torchrun --nproc-per-node=2 benchmarks/several_gpus.py``.

Each process takes one GPU. The first measures alone while the others wait, then all share the same work. Without
torchrun only the first of both is measured. Random weights, random images: a sweep's time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import rankscope as rs
from rankscope.loading import calibrate_batchnorm, load_model


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "small":
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10),
        ).eval()  # fmt: skip
    made = load_model(f"timm:{name}", weights="random").model
    calibrate_batchnorm(made, torch.randn(16, 3, 224, 224))
    return made


def measured(call: Callable[[str], Any], *, alone: bool) -> tuple[float, Any]:
    """Seconds, and the profile: by the first process alone, or by all of them."""
    several = dist.is_initialized()
    meet()
    started = time.perf_counter()
    found = None
    if not alone or not several or dist.get_rank() == 0:
        found = call("this" if alone else "all")
    took = time.perf_counter() - started
    meet()
    return took, found


def meet() -> None:
    """All processes wait for each other on the host: a barrier of NCCL would keep the waiting GPUs busy."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def images(model: torch.nn.Module, device: torch.device, count: int, side: int, *, alone: bool) -> dict[str, Any]:
    """Images a second after the first image, with the paper's patch of 768 columns."""
    x = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))

    def call(processes: str, number: int) -> Any:
        return rs.jacobian_rank(
            model, x[:number], columns=rs.Patch(16), cut_points="blocks", device=device,
            processes=processes,  # type: ignore[arg-type]
        )  # fmt: skip

    first, _ = measured(lambda processes: call(processes, 1), alone=alone)
    took, found = measured(lambda processes: call(processes, count), alone=alone)
    if found is None:
        return {}
    return {
        "seconds": took,
        "seconds of the first image": first,
        "images a second after the first": (count - 1) / (took - first) if took > first else None,
        "function rank": list(found.function_rank),
    }


def whole(
    model: torch.nn.Module, device: torch.device, side: int, method: rs.Lanczos, *, alone: bool
) -> dict[str, Any]:
    """Seconds of the full Jacobian of one image at every cut point."""
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))

    def call(processes: str) -> Any:
        return rs.jacobian_rank(
            model, x, columns="all", method=method, cut_points="blocks", device=device,
            processes=processes,  # type: ignore[arg-type]
        )  # fmt: skip

    took, found = measured(call, alone=alone)
    return {} if found is None else {"seconds": took, "function rank": list(found.function_rank)}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--network", default="resnet50", help="of timm, or small (a check of the script)")
    asked.add_argument("--images", type=int, default=65)
    asked.add_argument("--side", type=int, default=224)
    asked.add_argument("--probes", type=int, default=8)
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--limit", type=float, default=540.0, help="seconds: no part begins after them")
    asked.add_argument("--out", type=Path, default=None, help="JSON file, written after every part")
    options = asked.parse_args()
    began = time.perf_counter()
    gpu = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    first = size == 1 or dist.get_rank() == 0
    model = network(options.network).to(device)
    about = {
        "network": options.network,
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "torch": torch.__version__,
        "processes": size,
        "images": options.images,
    }
    found: dict[str, Any] = {"about": about}
    method = rs.Lanczos(probes=options.probes, steps=options.steps)
    # the first call of a process also loads kernels and libraries: it is not timed, and every process makes it
    parts: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("warm-up", lambda: images(model, device, 2 * size, options.side, alone=False)),
        ("images, one process", lambda: images(model, device, options.images, options.side, alone=True)),
        ("images, all processes", lambda: images(model, device, options.images, options.side, alone=False)),
        ("whole warm-up", lambda: whole(model, device, options.side, rs.Lanczos(probes=1, steps=4), alone=False)),
        ("whole, one process", lambda: whole(model, device, options.side, method, alone=True)),
        ("whole, all processes", lambda: whole(model, device, options.side, method, alone=False)),
    ]
    for name, part in parts:
        late = torch.tensor([time.perf_counter() - began > options.limit], dtype=torch.int32)
        if size > 1:
            dist.all_reduce(late)  # all leave out the same parts
        if bool(late) or (size == 1 and name.endswith("all processes")):
            found[name] = "left out: the time was over" if bool(late) else "left out: one process"
            continue
        found[name] = part()
        if first:
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
            found |= speedups(found)
            if options.out is not None:
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    if first:
        print(json.dumps(found, indent=1))
    if size > 1:
        dist.destroy_process_group()
    return 0


def speedups(found: dict[str, Any]) -> dict[str, Any]:
    """All processes against one, of what has been measured."""
    made: dict[str, Any] = {}
    rate = "images a second after the first"
    for name, key in (("images", rate), ("whole", "seconds")):
        one, several = found.get(f"{name}, one process"), found.get(f"{name}, all processes")
        if isinstance(one, dict) and isinstance(several, dict) and one.get(key) and several.get(key):
            ratio = several[key] / one[key] if key == rate else one[key] / several[key]
            made[f"{name}, times as fast"] = ratio
            pairs = zip(one["function rank"], several["function rank"], strict=True)
            made[f"{name}, largest difference of two ranks"] = max(abs(a - b) for a, b in pairs)
    return made


if __name__ == "__main__":
    sys.exit(main())
