"""Theory over measurement: a plain 16-layer tanh network on digits, untrained and trained, beside random layers.

    python examples/theory/run.py [--out DIR] [--small]

Writes theory.png, theory.csv (ranks beside the prediction, both networks), exponents.csv and theory.json. About half a
minute on one CPU core; --small: six layers, one epoch, two digits.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import rankscope as rs
from rankscope._base.style import RANDOM_GREY, TEXT_WIDTH, TRAINED, UNTRAINED, figure_style
from rankscope.demo.digits_network import DigitsSplit, digits_split

WIDTH = 64
KINDS = {"trained": TRAINED, "untrained": UNTRAINED}


def plain_network(depth: int) -> nn.Sequential:
    """Nothing but linear layers and tanh: no skip connection, no normalisation."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(depth)]
    for layer in layers:
        nn.init.xavier_normal_(layer[0].weight)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(WIDTH, 10)).eval()


def train(network: nn.Sequential, split: DigitsSplit, epochs: int) -> float:
    """Fit in place; returns the accuracy on digits held out."""
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(split.train_images), generator=generator).split(64):
            loss = nn.functional.cross_entropy(network(split.train_images[batch]), split.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float((network(split.held_out_images).argmax(1) == split.held_out_labels).float().mean())


def draw(profiles: dict[str, rs.JacobianProfile], exponents: dict[str, rs.ChainExponents], path: Path) -> None:
    """Ranks on the left, exponents on the right; the closed forms dotted."""
    with figure_style():
        figure = Figure(figsize=(TEXT_WIDTH, 3.1), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for name, profile in profiles.items():
            profile.plot(ax=left, label=name, theory=True, colour=KINDS[name])
        depth = len(profiles["trained"].layers)
        left.set_xticks(
            range(0, depth, 3), [profiles["trained"].layers[i].name for i in range(0, depth, 3)], rotation=0
        )
        left.set_title("rank of every sub-network", loc="left")
        left.set_xlabel("layer")
        _exponents(right, exponents)
        figure.savefig(path, dpi=180)


def _exponents(axes: Axes, exponents: dict[str, rs.ChainExponents]) -> None:
    k = np.arange(1, WIDTH + 1)
    for (name, found), marker in zip(exponents.items(), "os", strict=False):
        colour = KINDS[name]
        axes.fill_between(k, found.exponents.min(0), found.exponents.max(0), color=colour, alpha=0.16, linewidth=0)
        axes.plot(k, found.mean, color=colour, marker=marker, markevery=7, label=name)
    theory = rs.theory.gaussian_exponents(WIDTH, std=1 / math.sqrt(WIDTH)).exponents
    axes.plot(k, theory, color=RANDOM_GREY, linestyle=(0, (1, 1.2)), label="random layers (Theorem 5)")
    axes.set_xlabel("index k")
    axes.set_ylabel("exponent $λ_k$ (nats per layer)")
    axes.set_title("exponents of the same layers", loc="left")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-theory"))
    parser.add_argument("--small", action="store_true", help="six layers, one epoch, two digits")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    depth, epochs, digits = (6, 1, 2) if arguments.small else (16, 40, 16)
    split = digits_split()
    images = split.held_out_images[:digits].double()
    profiles, exponents = {}, {}
    network = plain_network(depth)
    accuracy = 0.0
    for name in ("untrained", "trained"):
        if name == "trained":
            accuracy = train(network, split, epochs)
            print(f"accuracy on held-out digits: {accuracy:.1%}")
        network.double()
        cut_points = [str(i) for i in range(1, depth + 2)]
        profiles[name] = rs.jacobian_rank(network, images, cut_points=cut_points, columns="all", progress=False)
        exponents[name] = rs.chain_exponents(network, images, cut_points=["0", *cut_points], name=name)
        network.float()
        print(f"\n{name}\n{profiles[name].against_random()}\n{exponents[name]}")
    draw(profiles, exponents, arguments.out / "theory.png")
    tables = [p.against_random().frame().assign(network=name) for name, p in profiles.items()]
    pd.concat(tables).to_csv(arguments.out / "theory.csv", index=False)
    pd.concat([e.frame().assign(network=n) for n, e in exponents.items()]).to_csv(
        arguments.out / "exponents.csv", index=False
    )
    record = {
        "accuracy": accuracy,
        "ranks": {name: p.against_random().to_dict() for name, p in profiles.items()},
        "exponents": {name: e.to_dict() for name, e in exponents.items()},
    }
    (arguments.out / "theory.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"\nwrote theory.png, theory.csv, exponents.csv and theory.json in {arguments.out}")


if __name__ == "__main__":
    main()
