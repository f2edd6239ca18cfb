"""Jacobian rank of every block: rankscope beside a competent user's own code, the reference way, and the yardstick.

All contenders run in one process, one after another, on the same model, image, cut points and patch, in float32.

    python benchmarks/jacobian.py --device cuda --images 16 --out docs/benchmarks
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.func import jacfwd, jvp, linearize, vmap

import rankscope as rs
from rankscope._base.provenance import device_name, versions
from rankscope.loading import calibrate_batchnorm, load_model
from rankscope.slicing import Patch, Sample, full_precision, measuring, select, trace
from rankscope.views.sentences import phrase

NETWORKS = {
    "ResNet-50": ("timm:resnet50", 1.9, 2.0),
    "ViT-T": ("timm:vit_tiny_patch16_224", 2.6, 2.0),
    "Swin-T": ("timm:swin_tiny_patch4_window7_224", 2.2, 2.0),
    "EfficientNet-Lite0": ("timm:tf_efficientnet_lite0", 2.2, 2.0),
}
SHAPE = (3, 224, 224)


class Peak:
    """Peak memory while a contender runs: allocated bytes on a GPU, resident bytes of the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.05):
            self.bytes = max(self.bytes, process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._stop.set()
            self._thread.join()


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forward_of(model: nn.Module, count: int, chunk: int, device: torch.device, repeats: int) -> tuple[float, int]:
    """Seconds of a plain forward pass of ``count`` images, in chunks; and peak memory."""
    x = torch.randn(chunk, *SHAPE, device=device)
    with torch.no_grad(), full_precision(), Peak(device) as peak:
        model(x)
        times = []
        for _ in range(repeats):
            start = clock(device)
            for _ in range(count // chunk):
                model(x)
            times.append(clock(device) - start)
    return statistics.median(times), peak.bytes


def ours(model: nn.Module, images: Tensor, patch: Patch, cuts: list[str], device: torch.device) -> dict[str, Any]:
    """A whole run, its seconds by further image, and those of a run of one image.

    Images overlap on a GPU, so each is timed by when the one before was finished, without waiting for the device.
    """
    stamps: list[float] = []
    start = clock(device)
    rs.jacobian_rank(model, images[:1], cut_points=cuts, columns=patch)
    first = clock(device) - start
    with Peak(device) as peak:
        start = clock(device)
        profile = rs.jacobian_rank(
            model, images, cut_points=cuts, columns=patch, progress=lambda *_: stamps.append(time.perf_counter())
        )
        total = clock(device) - start
    each = [b - a for a, b in pairwise(stamps)]
    steady = statistics.median(each) if each else first
    return {
        "seconds": total / len(images),
        "first": first,
        "once": total - len(images) * steady,
        "steady": steady,
        "bytes": peak.bytes,
        "ranks": profile.function_rank,
        "method": phrase(profile.method),
        "chunk": profile.chunk_size,
        "rows": sum(layer.rows for layer in profile.layers),
        "bounds": [(e.lower, e.upper) for e in (layer.estimates(profile.tolerance)[0] for layer in profile.layers)],
        "first_image": [layer.estimates(profile.tolerance)[0].value for layer in profile.layers],
    }


def runner(model: nn.Module, names: list[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What a user would write: forward hooks that keep flattened outputs (cloned, or in-place ReLUs spoil them)."""
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for name in names:
        modules[name].register_forward_hook(lambda _, __, out, name=name: kept.__setitem__(name, out.flatten().clone()))

    def run(x: Tensor) -> tuple[Tensor, ...]:
        model(x)
        return tuple(kept[n] for n in names)

    return run


def patch_function(
    run: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, patch: Patch
) -> tuple[Callable[[Tensor], Any], Tensor]:
    place = patch.coordinates(SHAPE).to(x.device)
    flat = x.flatten()

    def of_patch(values: Tensor) -> tuple[Tensor, ...]:
        return run(flat.index_put((place,), values).view_as(x))

    return of_patch, flat[place].clone()


def jacfwd_and_rank(run: Any, x: Tensor, patch: Patch, device: torch.device, chunk: int) -> dict[str, Any]:
    """GPU: ``jacfwd`` of all cut points at once. CPU, where that needs 20 GB: chunks of vmap(jvp), two timed."""
    of_patch, values = patch_function(run, x, patch)
    count = len(values)
    if device.type == "cuda":
        with torch.no_grad(), full_precision(), Peak(device) as peak:
            jacfwd(of_patch)(values)  # warm
            start = clock(device)
            jacobians = jacfwd(of_patch)(values)
            middle = clock(device)
            ranks = [int(torch.linalg.matrix_rank(j)) for j in jacobians]
            end = clock(device)
        return {"sweep": middle - start, "ranks": end - middle, "bytes": peak.bytes, "values": ranks, "how": "measured"}
    eye = torch.eye(count)
    with torch.no_grad(), full_precision(), Peak(device) as peak:

        def push(v: Tensor) -> Any:
            return jvp(of_patch, (values,), (v,))[1]

        times, parts = [], []
        for i in range(2):
            start = clock(device)
            out = vmap(push)(eye[i * chunk : (i + 1) * chunk])
            times.append(clock(device) - start)
            parts.append([o.shape[1] for o in out])
            del out
        sizes = parts[0]
        small = [n for n in sizes if n <= 50_000]
        probe = max(small)
        matrix = torch.randn(probe, count)
        start = clock(device)
        torch.linalg.matrix_rank(matrix)
        per_row = (clock(device) - start) / probe
    how = f"2 chunks of {chunk} and one SVD of {probe:,} rows timed, extrapolated"
    return {"sweep": times[-1] * count / chunk, "ranks": per_row * sum(sizes), "bytes": peak.bytes, "how": how}


def linearized(run: Any, x: Tensor, patch: Patch, device: torch.device, chunk: int) -> dict[str, Any]:
    """``torch.func.linearize`` at the image, then all columns through ``vmap`` of its product. CPU: two chunks timed.

    It takes the graph at one point, so what it does once is done for every image. Attention has to be on the plain
    kernel, as ``measuring`` sets it, and a network that it cannot record is a row that says so.
    """
    of_patch, values = patch_function(run, x, patch)
    count, step = len(values), chunk
    eye = torch.eye(count, device=device)
    chunks = range(0, count, step) if device.type == "cuda" else range(0, 2 * step, step)
    with torch.no_grad(), full_precision(), Peak(device) as peak:
        try:
            if device.type == "cuda":  # warm: kernels and libraries are loaded
                vmap(linearize(of_patch, values)[1])(eye[:step])
            start = clock(device)
            _, push = linearize(of_patch, values)
            once = clock(device) - start
            vmap(push)(eye[:step])
            start = clock(device)
            for i in chunks:
                vmap(push)(eye[i : i + step])
            sweep = (clock(device) - start) * count / min(len(chunks) * step, count)
        except (RuntimeError, NotImplementedError) as error:
            return {"once": 0.0, "sweep": 0.0, "bytes": peak.bytes, "how": f"failed: {str(error).splitlines()[0]}"}
    how = "measured" if device.type == "cuda" else f"2 chunks of {step} timed, extrapolated"
    return {"once": once, "sweep": sweep, "bytes": peak.bytes, "how": how}


def reverse_rows(run: Any, x: Tensor, device: torch.device, rows: int) -> dict[str, Any]:
    """One reverse pass a row, as the authors' code does; a few rows a layer timed, extrapolated to all."""
    total = 0.0
    with full_precision(), Peak(device) as peak:
        x = x.clone().requires_grad_()
        outputs = run(x)
        for out in outputs:
            torch.autograd.grad(out[0], x, retain_graph=True)
            start = clock(device)
            for i in range(rows):
                torch.autograd.grad(out[i], x, retain_graph=True)
            total += (clock(device) - start) / rows * len(out)
    return {"seconds": total, "bytes": peak.bytes}


def measure(network: str, device: torch.device, images: int, size: int, others: bool) -> dict[str, Any]:
    spec, gpu_goal, cpu_goal = NETWORKS[network]
    loaded = load_model(spec, weights="random")
    x = torch.randn(images, *SHAPE, generator=torch.Generator().manual_seed(0))
    calibrate_batchnorm(loaded.model, [x[:8]])
    model = loaded.model.to(device).eval()
    x = x.to(device)
    patch = Patch(size)
    count = patch.count(SHAPE)
    found = trace(model, Sample(x[:1], "first"))
    cuts = [c.name for c in select(model, found, "blocks")][:-1]  # up to the pooled features, as the paper
    chunk = 256 if device.type == "cuda" else 32
    plain, plain_bytes = forward_of(model, count, chunk, device, 5 if device.type == "cuda" else 1)
    if device.type == "cuda":
        ours(model, x[:1], patch, cuts, device)  # loads kernels and libraries
    mine = ours(model, x, patch, cuts, device)
    result: dict[str, Any] = {
        "network": network,
        "columns": count,
        "rows": mine["rows"],
        "cut_points": len(cuts),
        "images": images,
        "yardstick": {"seconds": plain, "bytes": plain_bytes},
        "rankscope": mine,
        "goal": gpu_goal if device.type == "cuda" else cpu_goal,
    }
    if others:
        with measuring(model, device):
            run = runner(model, cuts)
            result["user"] = jacfwd_and_rank(run, x[:1], patch, device, chunk)
            result["linearize"] = linearized(run, x[:1], patch, device, chunk)
            result["reference"] = reverse_rows_enabled(run, x[:1], device)
    return result


def reverse_rows_enabled(run: Any, x: Tensor, device: torch.device) -> dict[str, Any]:
    with torch.enable_grad():
        return reverse_rows(run, x, device, 5 if device.type == "cuda" else 2)


def row(name: str, seconds: float, yardstick: float, memory: int, note: str) -> str:
    return f"| {name} | {seconds:,.3f} | {seconds / yardstick:,.2f} | {memory / 2**30:.1f} GB | {note} |"


def table(results: list[dict[str, Any]], device: torch.device) -> str:
    about = ", ".join(f"{k} {v}" for k, v in versions().items() if k in ("python", "rankscope", "torch", "timm"))
    lines = [
        f"Device: {device_name(device)}; host: {platform.machine()}, {psutil.cpu_count()} cores; {about}.",
        "Random weights, BatchNorm statistics from 8 noise images, float32, TF32 off. Seconds for one image.",
    ]
    for r in results:
        unit = r["yardstick"]["seconds"]
        mine = r["rankscope"]
        head = f"{r['network']}: {r['cut_points']} cut points, {r['rows']:,} rows, K = {r['columns']}"
        lines += [
            "",
            f"**{head}**",
            "",
            "| contender | seconds | × yardstick | peak memory | note |",
            "|---|---|---|---|---|",
        ]
        lines.append(
            row(f"plain forward of {r['columns']} images", unit, unit, r["yardstick"]["bytes"], "the yardstick")
        )
        note = f"certificate and spectra included; mean of a run of {r['images']} images; goal {r['goal']}"
        lines.append(row("rankscope", mine["seconds"], unit, mine["bytes"], note))
        lines.append(row("… a further image", mine["steady"], unit, mine["bytes"], "median after the first"))
        lines.append(row("… one image alone", mine["first"], unit, mine["bytes"], "tracing and checks included"))
        note = "tracing, checks and recording: the run less a further image for each of its images"
        lines.append(row("… what is done once", mine["once"], unit, mine["bytes"], note))
        if "user" in r:
            u = r["user"]
            lines.append(row("columns by `jacfwd`", u["sweep"], unit, u["bytes"], u["how"]))
            both = u["sweep"] + u["ranks"]
            note = f"{both / mine['seconds']:.1f} × rankscope; float32 SVD, no certificate"
            lines.append(row("… and `torch.linalg.matrix_rank`", both, unit, u["bytes"], note))
            lin = r["linearize"]
            lines.append(row("columns by `torch.func.linearize`", lin["sweep"], unit, lin["bytes"], lin["how"]))
            note = "its graph, taken anew for every image; no ranks, no certificate"
            lines.append(row("… and what it does first", lin["once"] + lin["sweep"], unit, lin["bytes"], note))
            ref = r["reference"]
            note = f"{ref['seconds'] / mine['seconds']:,.0f} × rankscope; a few rows a layer timed, extrapolated"
            lines.append(row("one reverse pass a row", ref["seconds"], unit, ref["bytes"], note))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, help="default: 16 on a GPU, 1 on a CPU")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--networks", "--models", dest="networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--only-ours", action="store_true", help="leave out the slow contenders")
    parser.add_argument("--out", type=Path, help="folder for jacobian-<device>.md and .json")
    args = parser.parse_args()
    device = torch.device(args.device)
    images = args.images or (16 if device.type == "cuda" else 1)
    results = []
    for network in args.networks:
        results.append(measure(network, device, images, args.patch, not args.only_ours))
        print(table(results[-1:], device), flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"jacobian-{device.type}.md").write_text(table(results, device))
        (args.out / f"jacobian-{device.type}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
