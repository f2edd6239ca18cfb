"""Figures of what ``measure.py`` wrote: ranks over depth, feature dimensions, accuracy over components, the deficit.

    python examples/fractals/figures.py --results docs/fractals --out docs/images

Writes ``fractals-ranks.png``, ``-features.png``, ``-maps.png``, ``-classification.png`` and ``-deficit.png``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rankscope._base.style import COLOURS, COLUMN_WIDTH, TEXT_WIDTH, figure_style

TITLES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vit_tiny_patch16_224": "ViT-T",
    "gmixer_24_224": "GluMixer-24",
    "resmlp_24_224": "ResMLP-S24",
    "swin_tiny_patch4_window7_224": "Swin-T",
}
SHORT = (("patch_embed", "embed"), ("head.", ""), ("global_pool", "pool"), ("layers.", ""), ("blocks.", ""))


def _panels(names: list[str], ylabel: str, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A panel a network, three a row."""
    rows = math.ceil(len(names) / 3)
    figure = Figure(figsize=(TEXT_WIDTH, 0.4 + 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, min(3, len(names)), sharey=sharey, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes, names, strict=False):
        ax.set_title(TITLES.get(name, name))
    for ax in axes[::3]:
        ax.set_ylabel(ylabel)
    return figure, list(axes[: len(names)])


def _legend_below(figure: Figure, axes: list[Axes]) -> Figure:
    """One legend for all panels, which draw the same."""
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _layer_ticks(ax: Axes, layers: Sequence[str]) -> None:
    for long, short in SHORT:
        layers = [name.replace(long, short) for name in layers]
    ticks = np.unique(np.linspace(0, len(layers) - 1, 6).round().astype(int))
    ax.set_xticks(ticks + 1, np.asarray(layers)[ticks], rotation=60, ha="right", rotation_mode="anchor")


def ranks(results: Path, names: list[str]) -> Figure:
    """A panel a network: trained and untrained, both tolerances, the range over the images as a band."""
    figure, axes = _panels(names, "Jacobian rank (of 768)", sharey=True)
    for ax, name in zip(axes, names, strict=True):
        table = pd.read_csv(results / name / "ranks.csv")
        for colour, weights in zip(COLOURS, ("trained", "untrained"), strict=False):
            for dash, tolerance in (("-", "paper"), ((0, (4, 2)), "reference")):
                part = table[(table.weights == weights) & (table.tolerance == tolerance)]
                depth = np.arange(1, len(part) + 1)
                ax.fill_between(depth, part["min"], part["max"], color=colour, alpha=0.15, linewidth=0)
                marker = "o" if weights == "trained" else "s"
                ax.plot(
                    depth, part["median"], color=colour, ls=dash, marker=marker, ms=2.5, label=f"{weights}, {tolerance}"
                )
        _layer_ticks(ax, table["layer"].unique())
        ax.set_ylim(0, 800)
    return _legend_below(figure, axes)


def features(results: Path, names: list[str]) -> Figure:
    """Dimensions of the pooled features over depth, beside their width."""
    figure, axes = _panels(names, "pooled dimensions")
    for ax, name in zip(axes, names, strict=True):
        table = pd.read_csv(results / name / "features.csv")
        depth = np.arange(1, len(table) + 1)
        ax.step(depth, table["width"], where="mid", color="0.6", lw=1, label="width")
        for colour, dash, marker, what in zip(
            COLOURS,
            ("-", (0, (4, 2)), (0, (1, 1.2))),
            "os^",
            ("pca_dimension", "effective_rank", "participation_ratio"),
            strict=False,
        ):
            label = "PCA dimension" if what == "pca_dimension" else what.replace("_", " ")
            ax.plot(depth, table[what], color=colour, marker=marker, ms=2.5, ls=dash, label=label)
        _layer_ticks(ax, table["name"])
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _legend_below(figure, axes)


def maps(results: Path, names: list[str]) -> Figure:
    """Participation ratio of whole feature maps: over the data and around one image, trained and untrained."""
    figure, axes = _panels(names, "participation ratio", sharey=True)
    for ax, name in zip(axes, names, strict=True):
        table = pd.read_csv(results / name / "maps.csv")
        for colour, over, said in zip(COLOURS, ("data", "local"), ("over images", "around one image"), strict=False):
            for dash, weights in (("-", "trained"), ((0, (4, 2)), "untrained")):
                part = table[(table.weights == weights) & (table.over == over)]
                depth = np.arange(1, len(part) + 1)
                marker = "o" if over == "data" else "s"
                ax.plot(
                    depth, part["participation_ratio"], color=colour, ls=dash, marker=marker, ms=2.5,
                    label=f"{said}, {weights}",
                )  # fmt: skip
        ax.axhline(table["samples"].iloc[0] - 1, color="0.6", lw=0.8)
        _layer_ticks(ax, table["name"].unique())
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _legend_below(figure, axes)


def classification(results: Path, names: list[str]) -> Figure:
    """Accuracy over the number of components kept, crossings of 0.95 marked, one line a network."""
    figure = Figure(figsize=(COLUMN_WIDTH, 2.5), layout="constrained")
    ax = figure.subplots()
    for colour, dash, name in zip(COLOURS, ("-", (0, (5, 2)), (0, (1, 1.2)), "-.") * 2, names, strict=False):
        curve = pd.read_csv(results / name / "accuracy_curve.csv")
        found = json.loads((results / name / "summary.json").read_text())["classification_dimension"]
        k, ambient = found["dimension"], found["ambient"]
        ax.plot(
            curve["k"], 100 * curve["top1"], color=colour, ls=dash, label=f"{TITLES.get(name, name)}: {k} of {ambient}"
        )
        ax.plot([k], [100 * found["accuracy"]], "o", color=colour, ms=4)
    ax.set_xscale("function", functions=(lambda v: np.sqrt(np.clip(v, 0, None)), np.square))
    ax.set_xlim(0, 300)
    ax.set_xticks([1, 10, 25, 50, 100, 200, 300])
    ax.minorticks_off()
    ax.set_ylim(0, 102)
    ax.set_xlabel("principal components kept (square-root scale)")
    ax.set_ylabel("top-1 accuracy (%)")
    ax.legend(loc="lower right", title="classification dimension", title_fontsize=7)
    return figure


def deficit(results: Path, names: list[str]) -> Figure:
    """Share of the classes determined by at most k others, under both conventions, with and without the null."""
    figure = Figure(figsize=(TEXT_WIDTH, 2.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = ("all samples, exact, η by accuracy", "reference: positives only, η = 20")
    for ax, convention, title in zip(axes, ("all", "reference"), titles, strict=True):
        for colour, marker, name in zip(COLOURS, "os^Dv*", names, strict=False):
            table = pd.read_csv(results / name / f"deficit-{convention}.csv")
            k = np.arange(1, 161)
            kept = table["positive_accuracy_replaced"] >= 0.9 * table["positive_accuracy"]
            beyond = (table["status"] == "dependent") & kept
            for chosen, dash in ((kept, (0, (4, 2))), (beyond, "-")):
                share = [(chosen & (table["n_dependencies"] <= count)).mean() for count in k]
                label = TITLES.get(name, name) if dash == "-" else None
                ax.plot(k, 100 * np.array(share), color=colour, ls=dash, marker=marker, ms=3, markevery=20, label=label)
        ax.set_title(title)
        ax.set_xlabel("other classes allowed, k")
    axes[0].set_ylabel("classes that k others\nreplace (%)")
    axes[0].plot([], [], color="0.4", ls="-", label="and beyond the null")
    axes[0].plot([], [], color="0.4", ls=(0, (4, 2)), label="whatever the null says")
    axes[1].legend(*axes[0].get_legend_handles_labels(), loc="center right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of the networks trained on formula-driven images.")
    parser.add_argument("--results", type=Path, default=Path("docs/fractals"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    names = [name for name in TITLES if (given.results / name / "summary.json").exists()]
    if not names:
        raise SystemExit(f"{given.results} holds no results; run measure.py first, or name its --out with --results")
    given.out.mkdir(parents=True, exist_ok=True)
    with figure_style():
        for draw in (ranks, features, maps, classification, deficit):
            drawn = io.BytesIO()
            draw(given.results, names).savefig(drawn, dpi=200)
            # a palette of 128 colours: half the bytes, and no difference to be seen
            Image.open(drawn).convert("RGB").quantize(128).save(
                given.out / f"fractals-{draw.__name__}.png", optimize=True
            )


if __name__ == "__main__":
    main()
