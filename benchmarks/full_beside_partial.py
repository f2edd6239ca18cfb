"""The full rank of the Jacobian beside partial ranks, at every cut point of three networks, trained and untrained.

    python benchmarks/full_beside_partial.py --device cuda --limit 480 --out runs/beside
    python benchmarks/full_beside_partial.py --collect --out runs/beside       # the CSVs of what is there, no device
    python benchmarks/full_beside_partial.py --page --out docs/full-rank       # figures and tables from the CSVs

Trains ResNet-18, ResNet-50 and ViT-T on fractals (a minute each), then measures each of them and the same architecture
at random weights: the full Jacobian of every image, the central 16×16 patch, and a sketch of as many directions, all
read at the same absolute threshold. Every finished profile stays in --out, with the weights: the same command goes on
where --limit ended it. It writes ranks.csv (long form) and networks.csv of the networks of which at least two images
are measured at all three sets of columns, and exits with 1 where a partial rank exceeds the full one for certain, which
no threshold allows.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from beside.collecting import WEIGHTS, collect
from beside.drops import KINDS
from beside.measuring import Profiles, Question, measure_all
from beside.networks import NAMES, Training, pictures, train, trained, untrained
from beside.page import write_page

from rankscope.datasets import FractalSpec

TOLERANCES: list[str | float] = ["paper", 0.02, 0.1]
_STARTS = 40.0  # seconds that a training process takes beside its training


def impossible(ranks: pd.DataFrame) -> pd.DataFrame:
    """Partial ranks that exceed the full rank for certain: there is none, unless a bound is wrong."""
    same = ["network", "weights", "tolerance", "image", "layer"]
    full = ranks[ranks["columns"] == "full"].set_index(same)["upper"].rename("full_upper")
    partial = ranks[ranks["columns"].isin(KINDS)].join(full, on=same)
    return partial[partial["lower"] > partial["full_upper"]]


def measure(options: argparse.Namespace, spec: FractalSpec, question: Question) -> None:
    """Train and measure what is not there yet, as far as the time goes."""
    deadline = time.monotonic() + options.limit
    training = Training(spec, options.device, options.train_seconds, options.train_steps, options.batch)
    images = pictures(spec, options.images)
    profiles = Profiles(options.out / "profiles", deadline, options.device)
    for name in options.networks:
        for weights in WEIGHTS:
            file = options.out / "weights" / f"{name}-{weights}.safetensors"
            if weights == "untrained":
                network = untrained(name, file, spec, options.device)
            elif not file.exists() and time.monotonic() + options.train_seconds + _STARTS > deadline:
                continue
            else:
                train(name, file, training)
                network = trained(name, file, spec)
            measure_all(profiles, network, images, question)
            del network
            if options.device.startswith("cuda"):
                torch.cuda.empty_cache()


def summarise(options: argparse.Namespace, spec: FractalSpec, question: Question) -> int:
    """Write the CSVs of what is complete, and say what is missing."""
    names = list(dict.fromkeys([*NAMES, *options.networks]))  # an earlier run may have been asked for others
    ranks, missing = collect(options.out, names, question, asdict(spec), TOLERANCES)
    left = sum(missing[name] for name in options.networks)
    wrong = impossible(ranks) if len(ranks) else ranks
    if len(ranks):
        count = len(ranks.drop_duplicates(["network", "weights"]))
        print(f"{len(ranks):,} ranks of {count} networks; {len(wrong)} partial ranks exceed the full rank")
    if left:
        print(
            f"{left} measurements are left: the same command {'without --collect ' if options.collect else ''}goes on"
        )
    return int(bool(len(wrong)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of weights, profiles and CSVs")
    parser.add_argument("--page", action="store_true", help="only make figures and tables from the CSVs in --out")
    parser.add_argument("--collect", action="store_true", help="measure nothing: only the CSVs of what --out holds")
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
    spec = FractalSpec(classes=options.classes, size=options.side)
    question = Question(options.images, options.patch, options.sketch, options.method, options.bracket, options.budget)
    if not options.collect:
        measure(options, spec, question)
    return summarise(options, spec, question)


if __name__ == "__main__":
    sys.exit(main())
