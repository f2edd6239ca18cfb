"""The full Jacobian: what it costs, and whether [lower, upper] holds the truth.

    python benchmarks/full.py --networks --device cuda --out runs/full          # seconds and bytes at 224×224
    python benchmarks/full.py --planted --device cuda --seeds 200 --out runs/full
    python benchmarks/full.py --counts --device cuda --out runs/full            # probes against exact counts
    python benchmarks/full.py --planted --size 600 --seeds 200 --steps 40 --probes 4 --out runs/small    # on a CPU

Every finished piece is a JSON file in --out, and a piece that lies there is not run again: an interrupted run, or one
that reached --time-limit, goes on with the same command. The tables are printed and written as CSV at the end. It exits
with 1 where a truth is outside its bounds.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.loading import calibrate_batchnorm
from rankscope.spectra.lanczos import SquaredMap
from rankscope.spectra.matrix_free import Lanczos, matrix_free

RTOL = 1.79e-2  # the threshold of the paper at N = 150,528
NETWORKS = ("resnet50", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0")
SMALL = ("resnet18", "resnet50", "vit_tiny_patch16_224", "tf_efficientnet_lite0")
TOLERANCES = ("paper", "reference", 1e-2, 5e-2, 0.2)
_NOISE = 16  # images that BatchNorm's statistics come from

Row = dict[str, Any]


class Pieces:
    """Rows by name, each in a file of its own."""

    def __init__(self, folder: Path, deadline: float) -> None:
        self.folder, self.deadline = folder, deadline
        folder.mkdir(parents=True, exist_ok=True)
        self.left = 0

    def run(self, name: str, make: Callable[[], list[Row]]) -> list[Row]:
        file = self.folder / f"{name}.json"
        if file.exists():
            return list(json.loads(file.read_text()))
        if time.monotonic() > self.deadline:
            self.left += 1
            return []
        found = make()
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps(found, indent=1))
        temporary.replace(file)
        return found


def table(rows: list[Row], file: Path) -> None:
    if not rows:
        return
    head = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, head)
        writer.writeheader()
        writer.writerows(rows)
    cells = [head, *([_cell(row.get(key)) for key in head] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(head))]
    for line in cells:
        print(
            "  ".join(
                text.rjust(width) if k else text.ljust(width)
                for k, (text, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "-" if value is None else str(value)
    )


# planted spectra


def planted(size: int) -> dict[str, NDArray[np.float64]]:
    k = np.arange(1, size + 1)
    generator = np.random.default_rng(0)
    third = size // 3
    return {
        "power law": k**-0.5,
        "power law, steep": 1.0 / k,
        "Gaussian": np.abs(generator.normal(size=size)),
        "exponential": np.exp(-8.0 * k / size),
        "spike and tail": np.r_[1.0, 0.05 * np.abs(generator.normal(size=size - 1))],
        "gap at tau": np.r_[np.linspace(1, 3 * RTOL, third), np.full(size - third, RTOL / 3)],
        "cluster at tau": np.r_[
            np.linspace(1, 0.1, third), np.full(third, RTOL * (1 + 1e-6)), np.zeros(size - 2 * third)
        ],
        "rank 100": np.r_[np.linspace(1, 0.5, 100), np.zeros(size - 100)],
    }


def more(size: int) -> dict[str, NDArray[np.float64]]:
    third, half = size // 3, size // 2
    rest = np.zeros(size - 2 * third)
    return {
        "equal to tau": np.r_[np.linspace(1, 0.1, third), np.full(third, RTOL), rest],
        "rank 100, repeated": np.r_[np.ones(100), np.zeros(size - 100)],
        "rank one": np.r_[1.0, np.zeros(size - 1)],
        "zero": np.zeros(size),
        "repeated": np.r_[np.full(half, 1.0), np.full(size - half, 0.01)],
    }


def diagonal(sigma: NDArray[np.float64], dtype: torch.dtype, device: str) -> SquaredMap:
    """Gaussian probes make every basis alike, so a diagonal map stands for all."""
    values = torch.from_numpy(sigma).to(device, dtype)[:, None]
    return SquaredMap(lambda q: values * q, lambda q: values * q, (len(sigma), len(sigma)), dtype, device)


def one_planted(sigma: NDArray[np.float64], seed: int, options: argparse.Namespace) -> Row:
    dtype = getattr(torch, options.dtype)
    truth = int(((sigma >= RTOL * sigma.max()) & (sigma > 0)).sum())
    exact = diagonal(sigma, torch.float64, options.device) if dtype == torch.float32 else None
    settings = Lanczos(probes=options.probes, steps=options.steps, seed=seed)
    started = time.perf_counter()
    density = matrix_free(
        diagonal(sigma, dtype, options.device), settings, tolerance=RTOL, exact=exact, memory_budget=options.budget
    )
    found = density.rank(RTOL)
    return {
        "seed": seed,
        "true": truth,
        "value": found.value,
        "lower": found.lower,
        "upper": found.upper,
        "bracket": found.bracket,
        "standard_error": None if math.isnan(found.standard_error) else found.standard_error,
        "seconds": time.perf_counter() - started,
    }


def check_planted(options: argparse.Namespace, pieces: Pieces) -> int:
    spectra = planted(options.size) | (more(options.size) if options.more else {})
    missed, rows = 0, []
    for name, sigma in spectra.items():
        if options.only and name not in options.only:
            continue
        found: list[Row] = []
        for seed in range(options.seeds):
            about = f"{options.size}-{options.dtype}-{options.probes}-{options.steps}"
            key = f"planted-{about}-{name.replace(' ', '_')}-{seed:04d}"
            found += pieces.run(key, lambda sigma=sigma, seed=seed: [one_planted(sigma, seed, options)])
        if not found:
            continue
        inside = sum(row["lower"] <= row["true"] <= row["upper"] for row in found)
        missed += len(found) - inside
        true = max(found[0]["true"], 1)
        rows.append(
            {
                "spectrum": name,
                "true": found[0]["true"],
                "inside": f"{inside}/{len(found)}",
                "mean value": float(np.mean([row["value"] for row in found])),
                "mean error": float(np.mean([abs(row["value"] - row["true"]) for row in found]) / true),
                "largest error": float(np.max([abs(row["value"] - row["true"]) for row in found]) / true),
                "mean bracket": float(np.mean([row["bracket"] for row in found])),
                "mean width/N": float(np.mean([row["upper"] - row["lower"] for row in found]) / options.size),
                "widest": int(np.max([row["upper"] - row["lower"] for row in found])),
                "s/run": float(np.mean([row["seconds"] for row in found])),
            }
        )
    table(rows, pieces.folder / f"planted-{options.size}-{options.dtype}.csv")
    print(f"{missed} outside [lower, upper]")
    return missed


# networks


def network(name: str, side: int, device: str) -> tuple[nn.Module, torch.Tensor]:
    """Random weights from a seed, BatchNorm statistics of noise, and one image of noise."""
    import timm

    torch.manual_seed(0)
    sized: dict[str, Any] = {"img_size": side} if name.startswith(("vit", "swin")) and side != 224 else {}
    if name.startswith("resnet"):
        sized["zero_init_last"] = False  # the last norm of a block would switch it off
    model = timm.create_model(name, pretrained=False, **sized).eval()
    noise = torch.randn(_NOISE, 3, side, side, generator=torch.Generator().manual_seed(1))
    calibrate_batchnorm(model, [noise])
    return model.to(device), noise[:1]


def measured(
    model: nn.Module, x: torch.Tensor, method: Lanczos | str, options: argparse.Namespace
) -> tuple[rs.JacobianProfile, dict[str, float], dict[str, float]]:
    """The profile; seconds of each cut point; expected and total seconds and peak bytes."""
    started: dict[str, float] = {}

    def progress(done: int, total: int | None, text: str) -> None:
        started.setdefault(text, time.perf_counter())
        print(f"{text[:100]}", file=sys.stderr, flush=True)

    begun = time.perf_counter()
    profile = rs.jacobian_rank(
        model,
        x,
        cut_points=options.cut_points,
        columns="all",
        method=method,
        memory_budget=options.budget,
        device=options.device,
        progress=progress,
    )
    ended = time.perf_counter()
    begins = {text.split(": ")[1].split(" (")[0]: at for text, at in started.items() if " of " in text and ": " in text}
    order = [*begins.values(), ended]
    seconds = {name: order[k + 1] - order[k] for k, name in enumerate(begins)}
    plan = next(iter(of_kind(profile.facts, FactKind.FULL_PLAN)), None)
    whole = {"seconds": ended - begun, "expected": math.nan if plan is None else float(plan["seconds"])}
    whole["preparation"] = order[0] - begun if begins else 0.0
    whole["peak GB"] = (profile.peak_memory or 0) / 2**30
    return profile, seconds, whole


def layer_rows(profile: rs.JacobianProfile, seconds: dict[str, float]) -> Iterator[Row]:
    for layer in profile.layers:
        spectrum = layer.spectra[0]
        assert spectrum is not None
        rank = spectrum.rank(profile.tolerance)
        probed = isinstance(spectrum, rs.SpectralDensity)
        steps = next(iter(of_kind(spectrum.facts, FactKind.LANCZOS_STEPS)), None) if probed else None
        yield {
            "layer": layer.name,
            "rows": spectrum.shape[0],
            "N": min(spectrum.shape),
            "way": "Lanczos" if probed else "exact",
            "value": rank.value,
            "lower": rank.lower,
            "upper": rank.upper,
            "standard error": None if not probed or math.isnan(rank.standard_error) else rank.standard_error,
            "bracket": rank.bracket if probed else None,
            "steps": None if steps is None else steps["steps"],
            "stopped": None if steps is None else steps["reason"],
            "seconds": seconds.get(layer.name),
        }


def time_networks(options: argparse.Namespace, pieces: Pieces) -> int:
    rows, totals = [], []
    for name in options.only or NETWORKS:
        ways = {
            f"{options.steps} steps": Lanczos(probes=options.probes, steps=options.steps),
            f"bracket {options.bracket:g}": Lanczos(probes=options.probes, bracket=options.bracket),
        }
        for way, method in ways.items():

            def make(name: str = name, method: Lanczos = method) -> list[Row]:
                model, x = network(name, options.side, options.device)
                profile, seconds, whole = measured(model, x, method, options)
                facts = [str(note) for note in profile.notes]
                return [*layer_rows(profile, seconds), {"layer": "(all)", **whole, "notes": facts}]

            key = f"network-{name}-{options.side}-{options.probes}-{way.replace(' ', '_')}"
            found = pieces.run(key, make)
            if not found:
                continue
            *layers, total = found
            rows += [{"network": name, "way asked": way, **row} for row in layers]
            totals.append(
                {"network": name, "asked": way, **{k: v for k, v in total.items() if k not in ("layer", "notes")}}
            )
    table(rows, pieces.folder / "networks.csv")
    print()
    table(totals, pieces.folder / "networks-total.csv")
    return 0


def check_counts(options: argparse.Namespace, pieces: Pieces) -> int:
    """Probes beside all singular values of the same network: both at several tolerances."""
    rows, missed, off = [], 0, 0
    for side in options.sides:
        for name in options.only or SMALL:

            def make(name: str = name, side: int = side) -> list[Row]:
                model, x = network(name, side, options.device)
                exact, _, whole = measured(model, x, "exact", options)
                method = Lanczos(probes=options.probes, steps=options.steps)
                probed, _, other = measured(model, x, method, options)
                made = []
                for one, two in zip(exact.layers, probed.layers, strict=True):
                    a, b = one.spectra[0], two.spectra[0]
                    if not isinstance(a, rs.Spectrum) or not isinstance(b, rs.SpectralDensity):
                        continue
                    for tolerance in TOLERANCES:
                        truth, found = a.rank(tolerance), b.rank(tolerance)
                        made.append(
                            {
                                "network": name,
                                "side": side,
                                "layer": one.name,
                                "N": min(a.shape),
                                "tolerance": str(tolerance),
                                "exact": truth.value,
                                "exact lower": truth.lower,
                                "exact upper": truth.upper,
                                "value": found.value,
                                "lower": found.lower,
                                "upper": found.upper,
                                "standard error": None if math.isnan(found.standard_error) else found.standard_error,
                                "bracket": found.bracket,
                                "seconds exact": whole["seconds"],
                                "seconds probes": other["seconds"],
                            }
                        )
                return made

            rows += pieces.run(f"counts-{name}-{side}-{options.probes}-{options.steps}", make)
    for row in rows:
        row["inside"] = row["lower"] <= row["exact"] <= row["upper"]
        missed += not row["inside"]
        if row["bracket"] <= 0.05:
            allowed = 4 * (row["standard error"] or 0.0) + row["bracket"] * row["N"] / 2 + 0.5
            row["within"] = abs(row["value"] - row["exact"]) <= allowed
            off += not row["within"]
    table(rows, pieces.folder / "counts.csv")
    print(f"{len(rows)} comparisons: {missed} outside [lower, upper]")
    print(f"{off} further off than 4 standard errors and half the bracket")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="store_true", help="seconds and bytes of real networks")
    parser.add_argument("--planted", action="store_true", help="planted spectra, whose ranks are known")
    parser.add_argument("--counts", action="store_true", help="real networks against exact counts")
    parser.add_argument("--only", nargs="*", help="these networks of timm, or planted spectra, alone")
    parser.add_argument("--cut-points", default="blocks")
    parser.add_argument("--side", type=int, default=224, help="of the images of --networks")
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 96], help="of the images of --counts")
    parser.add_argument("--more", action="store_true", help="further planted spectra")
    parser.add_argument("--size", type=int, default=150_528, help="of planted spectra")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of planted products")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--bracket", type=float, default=0.05)
    parser.add_argument("--budget", default="8GB", help="memory budget of each measurement")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds after which nothing new is begun")
    options = parser.parse_args()
    if not (options.networks or options.planted or options.counts):
        parser.error("give --networks, --planted or --counts")
    pieces = Pieces(options.out, time.monotonic() + options.time_limit)
    missed = 0
    for wanted, run in (
        (options.planted, check_planted),
        (options.networks, time_networks),
        (options.counts, check_counts),
    ):
        if wanted:
            missed += run(options, pieces)
    if pieces.left:
        print(f"{pieces.left} pieces are left: the same command goes on")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
