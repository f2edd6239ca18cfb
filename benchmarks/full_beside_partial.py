"""The full rank of the Jacobian beside partial ranks, at every cut point of three networks, trained and untrained.

    python benchmarks/full_beside_partial.py --device cuda --limit 480 --out runs/beside
    python benchmarks/full_beside_partial.py --page --out docs/full-rank        # figures and tables from the CSVs

Trains ResNet-18, ResNet-50 and ViT-T on fractals (a minute each), then measures each of them and the same architecture
at random weights: the full Jacobian of every image, the central 16×16 patch, and a sketch of as many directions, all
read at the same absolute threshold. Every finished profile stays in --out, with the weights: the same command goes on
where --limit ended it. It writes ranks.csv (long form) and networks.csv of what is complete, and exits with 1 where a
partial rank exceeds the full one for certain, which no threshold allows.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from beside.drops import KINDS
from beside.measuring import Profiles, Question, key_of, measure_all
from beside.networks import NAMES, Network, Training, pictures, train, trained, untrained
from beside.page import write_page
from beside.rows import largest_stretch, rank_rows

import rankscope as rs
from rankscope.datasets import FractalSpec

TOLERANCES: list[str | float] = ["paper", 0.02, 0.1]
_STARTS = 40.0  # seconds that a training process takes beside its training


def describe(network: Network, profiles: list[rs.JacobianProfile], question: Question) -> dict[str, Any]:
    """What networks.csv says of one network."""
    record, first = network.record, profiles[0]
    names = ("test_accuracy", "test_images", "train_seconds", "steps", "images_seen", "seed", "recipe")
    return {
        "network": network.name,
        "weights": network.weights,
        **{name: record.get(name) for name in names},
        "trained_on": record.get("device"),
        "data_seed": record["data"]["seed"],
        "classes": record["data"]["classes"],
        "side": record["data"]["size"],
        "images": question.images,
        "patch": question.patch,
        "sketch": question.sketch,
        "method": str(question.full),
        "memory_budget": question.budget,
        "dtype": first.dtype,
        "full_seconds": round(sum(p.seconds for p in profiles) / len(profiles), 2),
        "peak_gb": round(max(p.peak_memory or 0 for p in profiles) / 2**30, 2),
        "device": first.device,
        **dict(first.versions),
        "checksum": network.key,
    }


def rows_of(network: Network, profiles: Profiles, question: Question) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of ranks.csv and the row of networks.csv, from profiles that are all there."""
    head = f"{network.name}-{network.weights}"

    def kept(name: str, what: str) -> rs.JacobianProfile:
        found = profiles.find(f"{head}-{name}", key_of(network, question, what))
        assert found is not None
        return found

    full = [kept(f"full-{i}", f"full {i}, {question.full}") for i in range(question.images)]
    partial = {kind: kept(kind, str(columns)) for kind, columns in question.columns.items()}
    stretch = {"sketch": largest_stretch(rs.Sketch(question.sketch), full[0].input_shape)}
    named = {"network": network.name, "weights": network.weights}
    return [named | row for row in rank_rows(full, partial, stretch, TOLERANCES)], describe(network, full, question)


def impossible(ranks: pd.DataFrame) -> pd.DataFrame:
    """Partial ranks that exceed the full rank for certain: there is none, unless a bound is wrong."""
    same = ["network", "weights", "tolerance", "image", "layer"]
    full = ranks[ranks["columns"] == "full"].set_index(same)["upper"].rename("full_upper")
    partial = ranks[ranks["columns"].isin(KINDS)].join(full, on=same)
    return partial[partial["lower"] > partial["full_upper"]]


def measure(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.limit
    spec = FractalSpec(classes=options.classes, size=options.side)
    question = Question(options.images, options.patch, options.sketch, options.method, options.bracket, options.budget)
    training = Training(spec, options.device, options.train_seconds, options.train_steps, options.batch)
    images = pictures(spec, options.images)
    profiles = Profiles(options.out / "profiles", deadline, options.device)
    ranks: list[dict[str, Any]] = []
    about: list[dict[str, Any]] = []
    for name in options.networks:
        for weights in ("untrained", "trained"):
            file = options.out / "weights" / f"{name}-{weights}.safetensors"
            if weights == "untrained":
                network = untrained(name, file, spec, options.device)
            elif not file.exists() and time.monotonic() + options.train_seconds + _STARTS > deadline:
                profiles.left += 1
                continue
            else:
                train(name, file, training)
                network = trained(name, file, spec)
            if measure_all(profiles, network, images, question):
                of_network, described = rows_of(network, profiles, question)
                ranks += of_network
                about.append(described)
            del network
            if options.device.startswith("cuda"):
                torch.cuda.empty_cache()
    if not ranks:
        print(f"{profiles.left} measurements are left: the same command goes on")
        return 0
    table = pd.DataFrame(ranks)
    table.to_csv(options.out / "ranks.csv", index=False, float_format="%.6g")
    pd.DataFrame(about).to_csv(options.out / "networks.csv", index=False)
    wrong = impossible(table)
    print(f"{len(table):,} ranks of {len(about)} networks; {len(wrong)} partial ranks exceed the full rank")
    if profiles.left:
        print(f"{profiles.left} measurements are left: the same command goes on")
    return int(bool(len(wrong)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of weights, profiles and CSVs")
    parser.add_argument("--page", action="store_true", help="only make figures and tables from the CSVs in --out")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs", help="where --page writes")
    parser.add_argument("--networks", nargs="+", default=list(NAMES), help="of timm, those that train.py knows")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds after which nothing new is begun")
    parser.add_argument("--train-seconds", type=float, default=60.0, help="of each network")
    parser.add_argument("--train-steps", type=int, help="train so many steps instead")
    parser.add_argument("--batch", type=int, help="of the training; default: the recipe's")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--side", type=int, default=224, help="of the images")
    parser.add_argument("--patch", type=int, default=16, help="side of the patch")
    parser.add_argument("--sketch", type=int, default=768, help="random directions")
    parser.add_argument("--method", default="auto", choices=["auto", "exact", "lanczos"], help="of the full Jacobian")
    parser.add_argument("--bracket", type=float, help="Lanczos probes, 16 of them, until their bracket is as narrow")
    parser.add_argument("--budget", default="8GB", help="memory budget of each measurement")
    options = parser.parse_args()
    if not 1 <= options.images <= options.classes:
        parser.error(f"--images is {options.images}; give 1 to {options.classes}, one of a class")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.page:
        write_page(options.out, options.docs)
        return 0
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
