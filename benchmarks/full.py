"""Does [lower, upper] hold the truth? Planted spectra, many seeds, by the public way of the matrix-free rank.

    python benchmarks/full.py --planted                        # 200 seeds of N = 600, float64 and float32 products
    python benchmarks/full.py --planted --size 150528 --seeds 1 --steps 200 --probes 8 --device cuda

The maps are diagonal: Gaussian probes make every basis alike. Prints one row a spectrum and exits with 1 on a miss.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope.spectra.lanczos import SquaredMap
from rankscope.spectra.matrix_free import Lanczos, matrix_free

RTOL = 1.79e-2  # the threshold of the paper at N = 150,528


def planted(size: int) -> dict[str, NDArray[np.float64]]:
    k = np.arange(1, size + 1)
    generator = np.random.default_rng(0)
    third, half = size // 3, size // 2
    rest = np.zeros(size - 2 * third)
    return {
        "power law": k**-0.5,
        "power law, steep": 1.0 / k,
        "Gaussian": np.abs(generator.normal(size=size)),
        "exponential": np.exp(-8.0 * k / size),
        "spike and tail": np.r_[1.0, 0.05 * np.abs(generator.normal(size=size - 1))],
        "gap at τ": np.r_[np.linspace(1, 3 * RTOL, third), np.full(size - third, RTOL / 3)],
        "cluster at τ": np.r_[
            np.linspace(1, 0.1, third), np.full(third, RTOL * (1 + 1e-6)), np.zeros(size - 2 * third)
        ],
        "equal to τ": np.r_[np.linspace(1, 0.1, third), np.full(third, RTOL), rest],
        "rank 100": np.r_[np.linspace(1, 0.5, 100), np.zeros(size - 100)],
        "rank one": np.r_[1.0, np.zeros(size - 1)],
        "zero": np.zeros(size),
        "repeated": np.r_[np.full(half, 1.0), np.full(size - half, 0.01)],
    }


def diagonal(sigma: NDArray[np.float64], dtype: torch.dtype, device: str) -> SquaredMap:
    values = torch.from_numpy(sigma).to(device, dtype)[:, None]
    return SquaredMap(lambda q: values * q, lambda q: values * q, (len(sigma), len(sigma)), dtype, device)


def check(options: argparse.Namespace) -> int:
    missed_all = 0
    print("spectrum           products     true    inside    error  bracket  width/N   s/run")
    for name, sigma in planted(options.size).items():
        truth = int(((sigma >= RTOL * sigma.max()) & (sigma > 0)).sum())
        exact = diagonal(sigma, torch.float64, options.device)
        for dtype in (torch.float64, torch.float32):
            operator = diagonal(sigma, dtype, options.device)
            started, inside, rows = time.perf_counter(), 0, []
            for seed in range(options.seeds):
                settings = Lanczos(probes=options.probes, steps=options.steps, seed=seed)
                operator.exponent = exact.exponent = None
                found = matrix_free(
                    operator, settings, exact=exact if dtype == torch.float32 else None, memory_budget="64GB"
                ).rank(RTOL)
                inside += found.lower <= truth <= found.upper
                rows.append((abs(found.value - truth) / max(truth, 1), found.bracket, found.width / options.size))
            error, bracket, width = np.mean(rows, axis=0)
            missed_all += options.seeds - inside
            print(
                f"{name:<18} {str(dtype)[6:]:<8} {truth:>8,} {inside:>4}/{options.seeds:<4} {error:>8.2%} "
                f"{bracket:>8.2%} {width:>8.2%} {(time.perf_counter() - started) / options.seeds:>7.2f}",
                flush=True,
            )
    print(f"{missed_all} outside [lower, upper]")
    return 1 if missed_all else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planted", action="store_true", help="planted spectra, whose ranks are known")
    parser.add_argument("--size", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if not given.planted:
        parser.error("give --planted")
    sys.exit(check(given))
