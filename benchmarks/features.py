"""Speed and memory of the analyses of feature space, beside the published procedure and the forward pass.

One run prints one table. Data: seeded and synthetic, N = 50,000 samples of 1,000 classes in 2,048 dimensions, whose
class means lie in 170 directions, so that the crossing is known to fall near k = 130.

    python benchmarks/features.py [--device cuda] [--samples 50000] [--threads 2]
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from rankscope._base.provenance import device_name, versions
from rankscope.features import CentredMoments, classification_dimension, collect
from rankscope.features.fingerprint import data_fingerprint, model_fingerprint
from rankscope.features.sources import as_dataset

Row = tuple[str, str, str]


def planted(samples: int, width: int, classes: int, device: str) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Features, labels and (weight, bias): class means in 170 directions of falling variance, plus noise everywhere."""
    g = torch.Generator().manual_seed(0)
    rank, noise, tail = min(170, width), 2.6, 0.05
    scale = torch.arange(1, rank + 1) ** -0.15
    means = torch.randn(classes, rank, generator=g) * scale
    labels = torch.arange(samples) % classes
    basis = torch.linalg.qr(torch.randn(width, rank, generator=g))[0]
    features = tail * torch.randn(samples, width, generator=g)
    features += (means[labels] + noise * scale * torch.randn(samples, rank, generator=g)) @ basis.T
    precision = 1 / (noise**2 * scale**2 + tail**2)
    weight = (means * precision) @ basis.T
    bias = -0.5 * (means**2 * precision).sum(1)
    return features.to(device), labels.to(device), (weight.to(device), bias.to(device))


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Wall-clock seconds of one call, and what it returned."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    value = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def peak(device: str) -> str:
    """Largest memory so far: of the process on a CPU, of torch's allocator on a GPU."""
    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"


def project_again(x: torch.Tensor, y: torch.Tensor, head: Any, axes: torch.Tensor, k: int) -> float:
    """The published procedure at one k: project on the top k components, map back, classify, count."""
    q = axes[:, :k]
    right = 0
    for rows, labels in zip(x.split(10_000), y.split(10_000), strict=True):
        right += int((((rows @ q) @ q.T @ head[0].T + head[1]).argmax(1) == labels).sum())
    return right / len(x)


def classification(samples: int, device: str) -> list[Row]:
    """Crossing, whole curve, and projecting again at sampled k."""
    x, y, head = planted(samples, 2048, 1000, device)
    if device == "cuda":  # the first call pays for libraries and kernels
        classification_dimension(x[:2000], y[:2000], head, bootstrap=5)
    first, early = timed(lambda: classification_dimension(x, y, head, stop_at_crossing=True), device)
    whole, found = timed(lambda: classification_dimension(x, y, head), device)
    memory = peak(device)
    axes = found.folded.axes.to(device)
    picks = (1, 130, 512, 1024, 2048)
    costs, agree = [], 0.0
    for k in picks:
        seconds, accuracy = timed(lambda k=k: project_again(x, y, head, axes, k), device)
        costs.append(seconds)
        agree = max(agree, abs(accuracy - found.curve[k - 1]))
    total = sum((b - a) * (s + t) / 2 for a, b, s, t in zip(picks, picks[1:], costs, costs[1:], strict=False))
    return [
        ("classification dimension", f"{found.dimension} {found.interval} of 2048", f"full {found.full_accuracy:.4f}"),
        ("to the crossing, with bootstrap of 200", f"{first:.2f} s", f"{len(early.curve)} components"),
        ("whole curve, with bootstrap of 200", f"{whole:.2f} s", f"peak memory {memory}"),
        (f"projecting again, k = {', '.join(map(str, picks))}", " ".join(f"{c:.2f}" for c in costs) + " s", "measured"),
        ("projecting again at all 2,048 k", f"{total:.0f} s", "extrapolated by trapezia"),
        ("ratio", f"{total / whole:.0f} ×", f"largest difference of accuracy {agree:.1e}"),
    ]


def moments(device: str) -> list[Row]:
    """Moments of a 2,048-wide layer against the forward pass that makes it, per 50,000 samples."""
    from torchvision.models import resnet50

    model = resnet50(weights=None).eval().to(device)
    batch = 256 if device == "cuda" else 16
    repeats = 20 if device == "cuda" else 3
    images, rows = torch.randn(batch, 3, 224, 224, device=device), torch.randn(256, 2048, device=device)
    metric = CentredMoments(2048).to(device)
    with torch.no_grad():
        model(images)
        forward, _ = timed(lambda: [model(images) for _ in range(repeats)], device)
    metric.update(rows)
    update, _ = timed(lambda: [metric.update(rows) for _ in range(20)], device)
    forward, update = forward / (repeats * batch) * 50_000, update / (20 * 256) * 50_000
    return [
        ("ResNet-50 forward of 50,000 images, float32", f"{forward:.1f} s", f"{repeats * batch} timed, scaled"),
        ("float64 moments of 50,000 × 2,048", f"{update:.2f} s", f"{update / forward:.2%} of the forward pass"),
    ]


def collecting(device: str) -> list[Row]:
    """Overhead of ``collect`` with pooled moments of the four stages over plain forward passes on the same batches."""
    from torchvision.models import resnet50

    model = resnet50(weights=None).eval().to(device)
    count, batch = (8192, 256) if device == "cuda" else (64, 16)
    images, labels = torch.randn(count, 3, 224, 224), torch.arange(count) % 1000
    cut_points = [f"layer{i}" for i in range(1, 5)]

    def plain() -> None:
        with torch.no_grad():
            for rows in images.split(batch):
                model(rows.to(device)).float().cpu()

    def whole() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return collect(model, (images, labels), cut_points=cut_points, out=folder, batch_size=batch)

    plain()
    best = min(timed(plain, device)[0] for _ in range(2)), min(timed(whole, device)[0] for _ in range(2))
    # the digests of model and arrays are taken once a run, however long it is
    digest = timed(lambda: (model_fingerprint(model), data_fingerprint(as_dataset((images, labels))[0])), device)[0]
    over = (best[1] - digest) / best[0] - 1
    note = f"{over:+.1%}, and {digest:.2f} s for the digests"
    return [
        (f"plain forward of {count} images, batches of {batch}", f"{best[0]:.2f} s", "ResNet-50"),
        ("collect, moments of 4 stages", f"{best[1]:.2f} s", note),
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    print(f"machine: {platform.machine()}, {device_name(options.device)}")
    print("versions:", ", ".join(f"{k} {v}" for k, v in versions().items()))
    rows = classification(options.samples, options.device) + moments(options.device) + collecting(options.device)
    print("\n| what | measured | note |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
