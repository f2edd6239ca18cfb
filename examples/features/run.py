"""Feature dimension of every layer of the shipped digits network: over all held-out digits, and around one of them.

    python examples/features/run.py [--out DIR] [--small]

Writes features.png, features.csv (both measurements, one row a layer) and features.json. About fifteen seconds on one
CPU core; --small: 100 digits and 200 noisy copies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import rankscope as rs
from rankscope._base.style import TEXT_WIDTH, figure_style
from rankscope.demo.digits_network import digits_network, digits_split


def draw(profiles: dict[str, rs.FeatureProfile], path: Path) -> None:
    """The two measurements side by side, on one scale."""
    titles = {"data": "over the held-out digits", "local": "around one digit"}
    with figure_style():
        figure = Figure(figsize=(TEXT_WIDTH, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        legend: dict[str, Artist] = {}
        for axes, (name, profile) in zip(panels, profiles.items(), strict=True):
            profile.plot(ax=axes)
            axes.set_title(f"{titles[name]} ({profile[0].samples:,} samples)", loc="left")
            legend |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
            axes.get_legend().remove()
        panels[1].set_ylabel("")
        figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=len(legend))
        figure.savefig(path, dpi=180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example-features"))
    parser.add_argument("--small", action="store_true", help="100 digits, 200 noisy copies")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    digits, copies = (100, 200) if arguments.small else (450, 5000)
    network, images = digits_network(), digits_split().held_out_images[:digits]
    profiles = {
        "data": rs.feature_rank(network, images),
        "local": rs.local_feature_rank(network, images[:1], samples=copies),
    }
    tables = []
    for name, profile in profiles.items():
        print(f"\n{name}\n{profile}")
        table = profile.table()
        table.insert(0, "measured", name)
        tables.append(table)
    pd.concat(tables).to_csv(arguments.out / "features.csv", index=False)
    record = {name: profile.to_dict() for name, profile in profiles.items()}
    (arguments.out / "features.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(profiles, arguments.out / "features.png")
    print(f"\nwrote features.png, features.csv and features.json in {arguments.out}")


if __name__ == "__main__":
    main()
