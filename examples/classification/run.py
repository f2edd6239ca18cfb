"""How many principal components of its final features the shipped digits network needs to classify.

    python examples/classification/run.py [--out DIR] [--small]

Writes classification.png, classification.csv (accuracy at every number of components, both projections),
classification.json and head.pt, the classifier cut down to those components. A few seconds on one CPU core; --small:
150 digits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import rankscope as rs
from rankscope._base.style import COLOURS, TEXT_WIDTH, figure_style
from rankscope.demo.digits_network import digits_network, digits_split


def variance_kept(features: Tensor) -> np.ndarray:
    """Share of the variance of (N, d) features in the first k principal components, k = 1 … d."""
    variances = np.linalg.svd((features - features.mean(0)).double().numpy(), compute_uv=False) ** 2
    return np.cumsum(variances) / variances.sum()


def draw_variance(found: rs.ClassificationDimension, variance: np.ndarray, axes: Axes) -> None:
    """Accuracy kept beside variance kept: classification needs far fewer components than reconstruction."""
    k = np.arange(1, found.ambient + 1)
    axes.plot(k, 100 * found.curve / found.full_accuracy, color=COLOURS[0], label="accuracy kept")
    axes.plot(k, 100 * variance, color=COLOURS[1], linestyle="--", label="variance kept")
    axes.axvline(found.dimension, color="#555555", linewidth=0.8, linestyle=":", label=f"dimension {found.dimension}")
    axes.set_xlim(0, found.ambient)
    axes.set_ylim(0, 104)
    axes.set_xlabel("principal components kept")
    axes.set_ylabel("share kept (%)")
    axes.legend(loc="lower right")
    axes.grid(axis="y", linewidth=0.4, alpha=0.4)


def draw(found: rs.ClassificationDimension, variance: np.ndarray, path: Path) -> None:
    with figure_style():
        figure = Figure(figsize=(TEXT_WIDTH, 2.7), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        found.plot(ax=left)
        draw_variance(found, variance, right)
        figure.savefig(path, dpi=180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-classification"))
    parser.add_argument("--small", action="store_true", help="150 digits instead of 450")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    network, split = digits_network(), digits_split()
    n = 150 if arguments.small else len(split.held_out_images)
    held_out = split.held_out_images[:n], split.held_out_labels[:n]
    train = split.train_images, split.train_labels
    measured = rs.collect(network, held_out, cut_points=[], out=arguments.out / "held-out")
    fitted = rs.collect(network, train, cut_points=[], out=arguments.out / "train")
    results, tables = {}, []
    for projection in ("uncentred", "centred"):
        # the axes come from the training set, the accuracy from digits that training never saw
        results[projection] = rs.classification_dimension(
            measured.features,
            measured.labels,
            measured.head,
            logits=measured.logits,
            fit_features=fitted.features,
            projection=projection,
        )
        print(f"\n{results[projection]}")
        table = results[projection].curve_table()
        table.insert(0, "projection", projection)
        tables.append(table)
    found = results["uncentred"]
    small_head = found.head()
    with torch.no_grad():
        right = (small_head(measured.features).argmax(1) == measured.labels).double().mean()
    print(f"\na head cut down to {found.dimension} components classifies {float(right):.1%} of {n} held-out digits")
    torch.save(small_head.state_dict(), arguments.out / "head.pt")
    pd.concat(tables).to_csv(arguments.out / "classification.csv", index=False)
    record = {name: result.to_dict() for name, result in results.items()}
    (arguments.out / "classification.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(found, variance_kept(fitted.features), arguments.out / "classification.png")
    print(f"wrote classification.png, classification.csv, classification.json and head.pt in {arguments.out}")


if __name__ == "__main__":
    main()
