"""Which digits' logits of the shipped network the other digits' logits determine, and by how many of them.

    python examples/deficit/run.py [--out DIR] [--small]

Writes deficit.png, deficit-8.png (one digit and what it is made of), deficit.csv (one row a digit), deficit-path.csv
(every penalty) and deficit.json. A few seconds on one CPU core; --small: 300 training digits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import rankscope as rs
from rankscope._base.style import COLOURS, TEXT_WIDTH, figure_style
from rankscope.demo.digits_network import digits_network, digits_split

NAMES = tuple("0123456789")
STRONG = 0.1  # the share of η_max at which the weights are shown


def draw_paths(paths: pd.DataFrame, axes: Axes) -> None:
    """Held-out R² of every digit as the penalty falls."""
    for name, path in paths.groupby("class"):
        seen = name == "8"
        axes.plot(
            path["eta_over_eta_max"],
            path["r2_held_out"],
            color=COLOURS[1] if seen else "#999999",
            linewidth=1.6 if seen else 0.8,
            zorder=3 if seen else 2,
            label="digit 8" if seen else "other digits" if name == "0" else None,
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("penalty, share of the least that gives all zeros")
    axes.set_ylabel("R² on held-out digits")
    axes.legend(loc="lower right")
    axes.set_title("how well the others determine a logit", loc="left")


def draw_weights(weights: np.ndarray, axes: Axes) -> None:
    """Row i: what logit i is made of."""
    largest = np.abs(weights).max()
    image = axes.imshow(weights, cmap="PuOr", vmin=-largest, vmax=largest)
    axes.figure.colorbar(image, ax=axes, label="weight λ", shrink=0.9)
    axes.set_xticks(range(10), NAMES)
    axes.set_yticks(range(10), NAMES)
    axes.set_xlabel("logit that is used")
    axes.set_ylabel("logit that is explained")
    axes.set_title(f"weights at {STRONG:g} of that penalty", loc="left")
    axes.spines[:].set_visible(False)


def draw(paths: pd.DataFrame, weights: np.ndarray, path: Path) -> None:
    with figure_style():
        figure = Figure(figsize=(TEXT_WIDTH, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        draw_paths(paths, left)
        draw_weights(weights, right)
        figure.savefig(path, dpi=180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-deficit"))
    parser.add_argument("--small", action="store_true", help="300 training digits instead of 1,347")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    network, split = digits_network(), digits_split()
    n = 300 if arguments.small else len(split.train_images)
    train = split.train_images[:n], split.train_labels[:n]
    held_out = split.held_out_images, split.held_out_labels
    fitted = rs.collect(network, train, cut_points=[], out=arguments.out / "train")
    apart = rs.collect(network, held_out, cut_points=[], out=arguments.out / "held-out")
    table = rs.independence_deficit(
        fitted.logits,
        fitted.labels,
        held_out=(apart.logits, apart.labels),
        class_names=NAMES,
        feature_dimension=fitted.features.shape[1],
    )
    print(table)
    followed = [table.path(i, points=12 if arguments.small else 40, floor=1e-2) for i in range(10)]
    paths = pd.concat([path.table().assign(**{"class": path.name}) for path in followed])
    strong = [int(np.abs(np.log(path.eta / path.eta_max / STRONG)).argmin()) for path in followed]
    weights = np.stack([path.coefficients[at] for path, at in zip(followed, strong, strict=True)])
    logits = fitted.logits.double()
    share = float(logits.sum(1).var() / logits.var(0).sum())
    print(f"variance of the sum of all ten logits: {share:.3f} of the sum of their variances (independent ones: 1)")

    table.table().to_csv(arguments.out / "deficit.csv")
    paths.to_csv(arguments.out / "deficit-path.csv", index=False)
    (arguments.out / "deficit.json").write_text(json.dumps(table.to_dict(), indent=1) + "\n", encoding="utf-8")
    draw(paths, weights, arguments.out / "deficit.png")
    table.plot(8).figure.savefig(arguments.out / "deficit-8.png")
    print(f"wrote deficit.png, deficit-8.png, deficit.csv, deficit-path.csv and deficit.json in {arguments.out}")


if __name__ == "__main__":
    main()
