"""Measure a network that ``train.py`` trained, beside the same network untrained: every analysis, on the test images.

    python examples/fractals/measure.py --weights weights/resnet18.safetensors --out results

Writes ``<out>/<model>/``: both Jacobian profiles (JSON and spectra), ``ranks.csv`` (both tolerances), ``features.csv``
(pooled), ``maps.csv`` (whole feature maps), ``accuracy_curve.csv``, ``deficit-*.csv`` and ``summary.json``. The images
are made from their formula on the device. The file of weights says which network it is of and which images it saw.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import rankscope as rs
from rankscope.datasets import FractalSpec, FractalTestSet, fractal_images
from rankscope.loading import calibrate_batchnorm, load_model, resolve_device

TOLERANCES = ("paper", "reference")


class Clock:
    """Seconds of every named part, said as they pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


def untrained(name: str, spec: FractalSpec, device: torch.device, *, seed: int = 1) -> nn.Module:
    """The same architecture with random weights, every residual branch open, BatchNorm having seen 256 images."""
    model = load_model(f"timm:{name}", weights="random", seed=seed, num_classes=spec.classes).model.to(device)
    count = min(256, 4 * spec.classes)
    labels = torch.arange(count) % spec.classes
    images = fractal_images(spec, labels, torch.arange(count) // spec.classes, split="validation", device=device)
    calibrate_batchnorm(model, images.split(64))
    return model


def jacobian(
    model: nn.Module, title: str, spec: FractalSpec, device: torch.device, *, images: int
) -> rs.JacobianProfile:
    """Partial Jacobian ranks of the paper's layers, on one test image each of ``images`` classes."""
    labels = torch.arange(images) * (spec.classes // images) % spec.classes
    pictures = fractal_images(spec, labels, torch.zeros_like(labels), split="test", device=device)
    return rs.jacobian_rank(
        model, pictures, cut_points="paper", tolerance="paper", device=device, provenance={"model": title}
    )


def rank_table(profiles: dict[str, rs.JacobianProfile]) -> pd.DataFrame:
    """One row a network, tolerance and layer."""
    parts = []
    for weights, profile in profiles.items():
        for tolerance in TOLERANCES:
            table = profile.table(tolerance)
            table.insert(0, "tolerance", tolerance)
            table.insert(0, "weights", weights)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def whole_maps(model: nn.Module, spec: FractalSpec, device: torch.device, *, images: int) -> pd.DataFrame:
    """Dimensions of whole feature maps: over ``images`` test images, and over as many noisy copies of one of them."""
    held_out = FractalTestSet(spec, per_class=math.ceil(images / spec.classes))
    batches = islice(held_out.test_batches(device, 250), math.ceil(images / 250))
    pictures = torch.cat([part for part, _ in batches])[:images]
    room = 4e9
    if device.type == "cuda":
        torch.cuda.empty_cache()
        room = torch.cuda.mem_get_info(device)[0]
    options: dict[str, Any] = {"cut_points": "paper", "memory_budget": room}
    found = {
        "data": rs.feature_rank(model, pictures, **options),
        "local": rs.local_feature_rank(model, pictures[:1], samples=images, **options),
    }
    return pd.concat({over: profile.table() for over, profile in found.items()}, names=["over"]).reset_index(level=0)


def test_data(spec: FractalSpec, per_class: int, device: torch.device) -> tuple[Any, dict[str, int]]:
    """The test images as arrays on a GPU that has the room, else as a data set; and the options of ``collect``."""
    held_out = FractalTestSet(spec, per_class=per_class)
    wanted = len(held_out) * 3 * spec.size**2 * 4
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > 2 * wanted:
        images = torch.empty(len(held_out), 3, spec.size, spec.size, device=device)
        labels = torch.empty(len(held_out), dtype=torch.int64)
        at = 0
        for part, of_part in held_out.test_batches(device, 500):
            images[at : at + len(part)] = part
            labels[at : at + len(part)] = of_part.cpu()
            at += len(part)
        return (images, labels), {"batch_size": 250}
    return held_out, {"batch_size": 50, "num_workers": 0 if device.type == "cpu" else 8}


def measure(
    model: nn.Module,
    name: str,
    spec: FractalSpec,
    device: torch.device,
    out: Path,
    *,
    training: dict[str, Any],
    images: int,
    per_class: int,
    maps: int,
) -> dict[str, Any]:
    """Run every analysis on ``model`` and write the results; returns what ``summary.json`` holds."""
    out.mkdir(parents=True, exist_ok=True)
    clock, model = Clock(), model.to(device).eval()
    summary: dict[str, Any] = {"training": training, "test_images": per_class * spec.classes}

    with clock.part("untrained network"):
        blank = untrained(name, spec, device)
    networks, profiles = {"trained": model, "untrained": blank}, {}
    for weights, network in networks.items():
        with clock.part(f"Jacobian profile, {weights}"):
            profiles[weights] = jacobian(network, f"{name}, {weights}", spec, device, images=images)
        profiles[weights].save(out / f"jacobian-{weights}")
        rank_table(profiles).to_csv(out / "ranks.csv", index=False, float_format="%.5g")

    with clock.part("test images"):
        data, options = test_data(spec, per_class, device)
    with tempfile.TemporaryDirectory() as folder, clock.part("collect"):
        found = rs.collect(model, data, cut_points="paper", reduce="pool", out=folder, **options)
    del data
    summary["test_accuracy"] = float((found.logits.argmax(1) == found.labels).double().mean())
    with clock.part("feature dimensions"):
        rs.feature_rank(found).table().to_csv(out / "features.csv", index=False, float_format="%.5g")
    with clock.part("classification dimension"):
        dimension = rs.classification_dimension(
            found.features, found.labels, found.head, logits=found.logits, device=device
        )
    dimension.curve_table().to_csv(out / "accuracy_curve.csv", index=False, float_format="%.5g")
    summary["classification_dimension"] = {k: v for k, v in dimension.to_dict().items() if k not in ("curve", "top5")}
    for convention, held_out in (("all", 0.2), ("reference", 0)):  # the published recipe fits every image of a class
        with clock.part(f"deficit, {convention}"):
            table = rs.independence_deficit(
                found.logits,
                found.labels,
                samples_used=convention,
                held_out=held_out,
                features=found.features,
                device=device,
            )
        table.table().to_csv(out / f"deficit-{convention}.csv", index=False, float_format="%.5g")
        summary[f"deficit_{convention}"] = {
            **{f"determined_by_{k}": table.deficit(k) for k in (1, 5, 10, 20, 50)},
            **{f"determined_by_{k}_any_null": table.deficit(k, beyond_null=False) for k in (1, 5, 10, 20, 50)},
            "statuses": pd.Series([row.status for row in table]).value_counts().to_dict(),
            "text": str(table).splitlines()[:12],
        }
    widths = {}
    for weights, network in networks.items():
        with clock.part(f"whole feature maps, {weights}"):
            widths[weights] = whole_maps(network, spec, device, images=maps)
        wide = pd.concat(widths, names=["weights"]).reset_index(level=0)
        wide.to_csv(out / "maps.csv", index=False, float_format="%.5g")
    summary["seconds"] = clock.seconds
    summary["torch"], summary["device"] = torch.__version__, profiles["trained"].device
    (out / "summary.json").write_text(json.dumps(summary, indent=1, default=str))
    return summary


def trained_on(weights: Path) -> dict[str, Any]:
    """What ``train.py`` wrote beside the weights: network, images, recipe, accuracy."""
    try:
        with safe_open(weights, "pt") as file:
            written = file.metadata() or {}
        record = {key: _plain(value) for key, value in written.items()}
        record["data"] = asdict(FractalSpec(**record["data"]))
        return record
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise SystemExit(
            f"error: {weights} is not what train.py writes ({error}); name its .safetensors file"
        ) from None


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Every analysis of a network trained on formula-driven images.")
    parser.add_argument("--weights", type=Path, required=True, help="what train.py wrote; it names network and images")
    parser.add_argument("--out", type=Path, default=Path("fractal-results"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=16, help="for the Jacobian profiles")
    parser.add_argument("--per-class", type=int, default=50, help="test images of each class")
    parser.add_argument("--maps", type=int, default=2000, help="for the dimensions of whole feature maps")
    given = parser.parse_args()
    for name, least in (("images", 1), ("per_class", 1), ("maps", 2)):
        if getattr(given, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(given, name)}; give at least {least}")
    record = trained_on(given.weights)
    name, spec = record["model"], FractalSpec(**record["data"])
    device = resolve_device(given.device)
    model = load_model(f"timm:{name}", weights=given.weights, num_classes=spec.classes).model
    out = given.out / name
    found = measure(
        model, name, spec, device, out, training=record, images=given.images, per_class=given.per_class, maps=given.maps
    )
    print(f"test accuracy {found['test_accuracy']:.4f}; results in {out}")


if __name__ == "__main__":
    try:
        main()
    except rs.RankscopeError as error:
        raise SystemExit(f"error: {error}") from None
