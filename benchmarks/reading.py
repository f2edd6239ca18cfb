"""How long printing, tables, JSON and the report take for profiles of many cut points and images.

    python benchmarks/reading.py --cut-points 19 150 --images 96 --columns 768

The spectra are made up, so that nothing but reading is timed. Every line starts from a profile that nobody has read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from rankscope.jacobian import JacobianProfile, Layer
from rankscope.jacobian.directions import Directions
from rankscope.report import profile_page
from rankscope.spectra import Spectrum, Tolerance

WAYS: dict[str, Callable[[JacobianProfile], object]] = {
    "print": str,
    "table": lambda profile: profile.table(),
    "JSON": lambda profile: json.dumps(profile.to_dict()),
    "table of images": lambda profile: profile.per_image(),
    "beside random": lambda profile: profile.against_random(),
    "report": lambda profile: profile_page(profile).html(),
}


def made(cut_points: int, images: int, columns: int) -> JacobianProfile:
    """Singular values that fall faster from one cut point to the next, each image's with a factor of its own."""
    rng, rows = np.random.default_rng(0), 4096
    layers = []
    for k in range(cut_points):
        falling = np.exp(-np.linspace(0, 2 + 14 * k / cut_points, columns))
        spectra = (
            Spectrum(falling * rng.uniform(0.9, 1.1, columns), (rows, columns), "float32", 1e-7, 1e-14)
            for _ in range(images)
        )
        layers.append(Layer(f"layer{k}.block", rows, columns, True, tuple(spectra)))
    return JacobianProfile(
        model="made up",
        layers=tuple(layers),
        images=tuple(f"image {i}" for i in range(images)),
        tolerance=Tolerance.paper(),
        columns=Directions("patch", columns, "patch"),
        background="image",
        device="cpu",
        dtype="float32",
        versions={},
        input_shape=(3, 224, 224),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cut-points", type=int, nargs="+", default=[19, 150])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--columns", type=int, default=768)
    arguments = parser.parse_args()
    for count in arguments.cut_points:
        for name, read in WAYS.items():
            profile = made(count, arguments.images, arguments.columns)
            wall, cpu = time.perf_counter(), time.process_time()
            read(profile)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{count:>4} cut points, {name:<16} {cpu:6.2f} s of CPU, {wall:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
