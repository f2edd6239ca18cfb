"""Jacobian rank of every sub-network of the shipped digits network, trained and untrained, and the spectra behind it.

    python examples/profile/run.py [--out DIR] [--small]

Writes profile.png, profile.csv (one row a network, layer and tolerance) and a folder for each network that
``rs.JacobianProfile.load`` reads back. About fifteen seconds on one CPU core; --small: two digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import rankscope as rs
from rankscope._base.style import COLOURS, TEXT_WIDTH, TRAINED, UNTRAINED, figure_style
from rankscope.demo.digits_network import digits_network, digits_split
from rankscope.loading import calibrate_batchnorm

KINDS = {"trained": TRAINED, "untrained": UNTRAINED}
SHOWN = ("stem.2", "layer2.1", "layer3.1", "flatten", "fc")


def measure(digits: int) -> dict[str, rs.JacobianProfile]:
    """Both networks on the same held-out digits; 64 pixels, so every column of the Jacobian is taken."""
    split = digits_split()
    networks = {"trained": digits_network("trained"), "untrained": digits_network("random", seed=0)}
    # a network that never saw data has BatchNorm statistics of none
    calibrate_batchnorm(networks["untrained"], split.train_images.split(256))
    images = split.held_out_images[:digits]
    return {name: rs.jacobian_rank(network, images, columns="all") for name, network in networks.items()}


def draw_spectra(profile: rs.JacobianProfile, axes: Axes) -> None:
    """Singular values of the first image at five cut points, and where the two tolerances cut."""
    for number, name in enumerate(SHOWN):
        spectrum = profile[name].spectra[0]
        if spectrum is None:
            continue
        values = spectrum.singular_values / spectrum.sigma_max
        index = np.arange(1, len(values) + 1)
        axes.plot(index, np.maximum(values, 1e-9), color=COLOURS[number], label=name)
    for tolerance, style in (("reference", "--"), ("paper", ":")):
        first = profile[SHOWN[0]].spectra[0]
        assert first is not None
        height = first.rank(tolerance).threshold / first.sigma_max
        axes.axhline(height, color="#555555", linewidth=0.9, linestyle=style, label=f"{tolerance} ({height:.1e})")
    axes.set_yscale("log")
    axes.set_ylim(1e-9, 2)
    axes.set_xlabel("singular value")
    axes.set_ylabel("share of the largest")
    axes.set_title("trained network, one digit", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw(profiles: dict[str, rs.JacobianProfile], path: Path) -> None:
    """Rank over depth beside the spectra that it is read off."""
    with figure_style():
        figure = Figure(figsize=(TEXT_WIDTH, 3.0), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for name, profile in profiles.items():
            profile.plot(ax=left, label=name, colour=KINDS[name])
        left.set_title("rank over depth, tolerance: paper", loc="left")
        draw_spectra(profiles["trained"], right)
        figure.savefig(path, dpi=180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-profile"))
    parser.add_argument("--small", action="store_true", help="two digits instead of 32")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    profiles = measure(2 if arguments.small else 32)
    tables = []
    for name, profile in profiles.items():
        print(f"\n{name}\n{profile}")
        profile.save(arguments.out / name)
        for tolerance in ("paper", "reference"):
            table = profile.table(tolerance)
            table.insert(0, "network", name)
            table.insert(1, "tolerance", tolerance)
            tables.append(table)
    pd.concat(tables).to_csv(arguments.out / "profile.csv", index=False)
    draw(profiles, arguments.out / "profile.png")
    print(f"\nwrote profile.png and profile.csv in {arguments.out}")


if __name__ == "__main__":
    main()
