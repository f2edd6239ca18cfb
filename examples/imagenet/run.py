"""Figure and tables of docs/imagenet.md, from what ``measure.py`` wrote.

    python examples/imagenet/run.py [--results docs/imagenet] [--out DIR] [--page docs/imagenet.md]

Writes imagenet.png in ``--out``; with ``--page`` it also fills the tables of that page, between their markers.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rankscope._base.style import COLOURS, RANDOM_GREY, TEXT_WIDTH, figure_style

LITE0 = "efficientnet-lite0"
CENTRE = "patch 16 centre"
NAMES = {
    "untrained-set": "untrained, BatchNorm set",
    CENTRE: "16×16 at the centre",
    "patch 8 centre": "8×8 at the centre",
    "patch 16 at 32,32": "16×16 at (32, 32)",
    "patch 16 at 176,176": "16×16 at (176, 176)",
    "sketch 768": "768 random directions",
    "efficientnet-lite0": "Lite0",
    "efficientnet-lite1": "Lite1",
    "efficientnet-lite2": "Lite2",
}
COLOUR = {"trained": COLOURS[0], "untrained": COLOURS[1]}
ENDS = ("bn1.act", "blocks.6.0", "global_pool.flatten", "classifier")


def panel(ax: Axes, ranks: pd.DataFrame, tolerance: str) -> None:
    """Rank over depth of both networks and photographs, with certified bounds, and of random layers."""
    for weights, colour in COLOUR.items():
        chosen = ranks[(ranks["weights"] == weights) & (ranks["tolerance"] == tolerance)]
        for (image, one), style in zip(chosen.groupby("image"), ("-", (0, (4, 2))), strict=True):
            x = np.arange(len(one))
            ax.plot(x, one["rank"], color=colour, linestyle=style, label=f"{weights}, {image}")
            ax.fill_between(x, one["lower"], one["upper"], color=colour, alpha=0.2, linewidth=0)
    ax.plot(
        x, one["random"], color=RANDOM_GREY, linestyle=(0, (1, 1.2)), linewidth=1.6, label="random layers, same widths"
    )
    names = one["layer"].str.replace("global_pool.flatten", "pooled").tolist()
    named = [0, *range(3, len(names) - 3, 3), len(names) - 2, len(names) - 1]  # every third, so that a phone shows them
    ax.set_xticks(x[named], [names[k] for k in named], rotation=60, ha="right")
    ax.set_xticks(x, minor=True)
    ax.set_ylim(0, 800)
    ax.set_title(f"tolerance: {tolerance}", loc="left")
    ax.set_xlabel("layer")


def draw(ranks: pd.DataFrame, path: Path) -> None:
    """Both tolerances side by side."""
    chosen = ranks[(ranks["network"] == LITE0) & (ranks["columns"] == CENTRE)]
    with figure_style():
        figure = Figure(figsize=(TEXT_WIDTH, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        panel(left, chosen, "paper")
        panel(right, chosen, "reference")
        left.set_ylabel("Jacobian rank")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=2.4)
        figure.savefig(path, dpi=150)


def cell(row: pd.Series) -> str:
    """The rank, with its certified bounds where they leave more than one number."""
    value = f"{row['rank']:,}"
    return value if row["lower"] == row["upper"] else f"{value} [{row['lower']:,}, {row['upper']:,}]"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def of_layers(ranks: pd.DataFrame, tolerance: str) -> str:
    """All cut points of Lite0 behind the central patch."""
    chosen = ranks[(ranks["network"] == LITE0) & (ranks["columns"] == CENTRE) & (ranks["tolerance"] == tolerance)]
    images = list(chosen["image"].unique())
    head = ["layer", "outputs", "random layers", *(f"{w}, {i}" for w in COLOUR for i in images)]
    rows = []
    for layer, group in chosen.groupby("layer", sort=False):
        found = group.set_index(["weights", "image"])
        first = found.iloc[0]
        ranked = [cell(found.loc[(w, i)]) for w in COLOUR for i in images]
        rows.append([f"`{layer}`", f"{first['outputs']:,}", f"{first['random']:.0f}", *ranked])
    return markdown(head, rows)


def of_ends(ranks: pd.DataFrame, groups: list[str]) -> str:
    """One row for each measurement and tolerance: the ranks on both photographs at the stem and at the last layers."""
    head = [*groups, "tolerance", *(f"`{layer}`" for layer in ENDS)]
    rows = []
    for keys, group in ranks.groupby([*groups, "tolerance"], sort=False):
        ranked = [" / ".join(f"{r:,}" for r in group[group["layer"] == layer]["rank"]) or "–" for layer in ENDS]
        rows.append([*(NAMES.get(key, key) for key in keys), *ranked])
    return markdown(head, rows)


def of_full(ranks: pd.DataFrame) -> str:
    """The Jacobian with respect to all pixels: exact at the last two cut points, by random probes before them."""
    chosen = ranks[ranks["columns"].isin(["full, probes", "full"])]
    images = list(chosen["image"].unique())
    head = ["layer", "at most", "tolerance", *(f"{w}, {i}" for w in COLOUR for i in images)]
    rows = []
    for layer in dict.fromkeys([*chosen.loc[chosen["columns"] == "full, probes", "layer"], *chosen["layer"]]):
        for tolerance, group in chosen[chosen["layer"] == layer].groupby("tolerance", sort=False):
            found = group.set_index(["weights", "image"])
            ranked = [cell(found.loc[(w, i)]) for w in COLOUR for i in images]
            rows.append([f"`{layer}`", f"{group['possible'].iloc[0]:,}", tolerance, *ranked])
    return markdown(head, rows)


def of_answers(answers: pd.DataFrame) -> str:
    """The three most probable classes."""
    rows = []
    for (network, image), group in answers.groupby(["network", "image"], sort=False):
        said = ", ".join(
            f"{c.partition(',')[0]} {p:.2f}" for c, p in zip(group["class"], group["probability"], strict=True)
        )
        rows.append([NAMES[network], image, said])
    return markdown(["network", "photograph", "most probable classes"], rows)


def of_dimensions(found: pd.DataFrame) -> str:
    """Feature dimension around each photograph."""
    rows = [
        [row["weights"], row["image"], f"`{row['name']}`", f"{row['width']:,}", f"{row['pca_dimension']:,}",
         f"{row['participation_ratio']:.1f}"]
        for _, row in found.iterrows()
    ]  # fmt: skip
    return markdown(["weights", "photograph", "layer", "width", "PCA dimension", "participation ratio"], rows)


def tables(results: Path) -> dict[str, str]:
    """Every table of the page by the name of its marker."""
    ranks = pd.read_csv(results / "ranks.csv")
    lite0 = ranks[ranks["network"] == LITE0]
    made = {
        "answers": of_answers(pd.read_csv(results / "answers.csv")),
        "paper": of_layers(ranks, "paper"),
        "reference": of_layers(ranks, "reference"),
        "columns": of_ends(
            lite0[lite0["weights"].isin(COLOUR) & ~lite0["columns"].str.startswith("full")], ["columns", "weights"]
        ),
        "full": of_full(lite0),
        "batchnorm": of_ends(lite0[(lite0["columns"] == CENTRE) & (lite0["weights"] != "trained")], ["weights"]),
        "networks": of_ends(
            ranks[(ranks["columns"] == CENTRE) & ranks["weights"].isin(COLOUR)], ["network", "weights"]
        ),
    }
    dimensions = results / "dimensions.csv"
    if dimensions.exists():
        made["dimensions"] = of_dimensions(pd.read_csv(dimensions))
    return made


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with every marked part replaced."""
    for name, text in parts.items():
        pattern = rf"(<!-- begin {name} -->).*?(<!-- end {name} -->)"
        page = re.sub(pattern, lambda m, text=text: f"{m[1]}\n\n{text}\n\n{m[2]}", page, flags=re.DOTALL)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("docs/imagenet"))
    parser.add_argument("--out", type=Path, default=Path("runs/example-imagenet"))
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(pd.read_csv(arguments.results / "ranks.csv"), arguments.out / "imagenet.png")
    if arguments.page is not None:
        page = filled(arguments.page.read_text(encoding="utf-8"), tables(arguments.results))
        arguments.page.write_text(page, encoding="utf-8")
    print(f"wrote imagenet.png in {arguments.out}")


if __name__ == "__main__":
    main()
