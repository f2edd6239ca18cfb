"""Tables of the page, in Markdown, each from the rows of ranks.csv and networks.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from beside.drops import KINDS

__all__ = ["TITLES", "blocks", "chosen_layers"]

TITLES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit_tiny_patch16_224": "ViT-T"}
_MAIN = "paper"  # the tolerance of the tables that show one


def blocks(ranks: pd.DataFrame, networks: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, str]:
    """Each generated part of the page by its name."""
    return {
        "networks": networks_table(networks),
        "ranks": ranks_table(ranks),
        "lemma": lemma_table(pairs),
        "lemma-all": lemma_sentence(pairs),
        "depth": depth_table(pairs),
        "random": random_table(ranks),
    }


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value) == int(value) else f"{value:,.1f}"


def _title(name: str) -> str:
    return TITLES.get(name, name)


def networks_table(networks: pd.DataFrame) -> str:
    rows = []
    for row in networks.to_dict("records"):
        trained = row["weights"] == "trained"
        rows.append([
            _title(row["network"]),
            row["weights"],
            f"{row['train_seconds']:.0f} s" if trained else "–",
            row["images_seen"] if trained else "–",
            f"{100 * row['test_accuracy']:.2f} %" if trained else "–",
            f"{row['full_seconds']:.0f} s",
        ])  # fmt: skip
    head = ["network", "weights", "training", "images seen", "held-out top-1", "full Jacobian, one image"]
    return markdown(head, rows)


def chosen_layers(layers: pd.DataFrame) -> list[str]:
    """The last cut point of every number of outputs, and every third one of a long run of equal numbers."""
    ordered = layers.drop_duplicates("layer").sort_values("depth")
    names, outputs = list(ordered["layer"]), list(ordered["outputs"])
    found, run = [], 0
    for k, name in enumerate(names):
        run = run + 1 if k and outputs[k] == outputs[k - 1] else 1
        last = k + 1 == len(names) or outputs[k + 1] != outputs[k]
        if last or run % 3 == 0:
            found.append(name)
    return found


def ranks_table(ranks: pd.DataFrame) -> str:
    """Medians over the images; of the full rank also the bounds over all of them."""
    rows = []
    read = ranks[ranks["tolerance"] == _MAIN]
    for name, of_network in read.groupby("network", sort=False):
        for layer in chosen_layers(of_network):
            at = of_network[of_network["layer"] == layer]
            full = at[at["columns"] == "full"]
            row: list[Any] = [
                _title(str(name)),
                f"`{layer}`",
                int(at["outputs"].iloc[0]),
                float(full["random"].iloc[0]),
            ]
            for weights in ("untrained", "trained"):
                part = full[full["weights"] == weights]
                known = f"{part['rank'].median():,.0f} [{part['lower'].min():,}, {part['upper'].max():,}]"
                row.append(known if len(part) else "–")
            for kind in KINDS:
                of_kind = at[at["columns"] == kind].groupby("weights")["rank"].median()
                row += [of_kind.get(weights, "–") for weights in ("untrained", "trained")]
            rows.append(row)
    head = ["network", "layer", "outputs", "random layers", "full, untrained", "full, trained"]
    head += [f"{kind}, {weights}" for kind in KINDS for weights in ("untrained", "trained")]
    return markdown(head, rows)


def lemma_table(pairs: pd.DataFrame) -> str:
    """Pairs of cut points between which the partial rank falls, and what the full rank does there."""
    rows = []
    for (name, weights, kind), part in pairs[pairs["tolerance"] == _MAIN].groupby(
        ["network", "weights", "columns"], sort=False
    ):
        falls = part[part["partial"] > 0]
        seen = (falls["partial"] / falls["full"].where(falls["full"] > 0)).median()
        counts = [int((falls["verdict"] == found).sum()) for found in ("holds", "open", "fails")]
        estimated = int((falls["estimate"] == "fails").sum())
        share = f"{100 * seen:.2g} %" if seen == seen else "–"
        rows.append([_title(str(name)), str(weights), str(kind), len(part), len(falls), *counts, estimated, share])
    head = ["network", "weights", "columns", "pairs", "partial rank falls", "bound holds", "open", "bound fails"]
    return markdown([*head, "fails by the estimates", "share of the drop seen, median"], rows)


def lemma_sentence(pairs: pd.DataFrame) -> str:
    """The same counts for every tolerance, all networks together."""
    lines = []
    for tolerance, part in pairs.groupby("tolerance", sort=False):
        falls = part[part["partial"] > 0]
        counts = falls["verdict"].value_counts()
        holds, fails, undecided = (counts.get(found, 0) for found in ("holds", "fails", "open"))
        estimated = int((falls["estimate"] == "fails").sum())
        lines.append(
            f"- Tolerance {tolerance}: the partial rank falls in {len(falls):,} of {len(part):,} pairs. The bound "
            f"holds for certain in {holds:,}, fails for certain in {fails:,}, and is open in {undecided:,}. By the "
            f"best estimates it fails in {estimated:,}."
        )
    return "\n".join(lines)


def depth_table(pairs: pd.DataFrame) -> str:
    """Steps from one cut point to the next: whether the full rank falls, and whether the partial ranks do."""
    rows = []
    steps = pairs[pairs["adjacent"]]
    for (name, weights, tolerance), part in steps.groupby(["network", "weights", "tolerance"], sort=False):
        full = part[part["columns"] == KINDS[0]]
        falls, rises = full["full_lower"] > 0, full["full_upper"] < 0
        stays = (full["full_lower"] == 0) & (full["full_upper"] == 0)
        row: list[Any] = [_title(str(name)), str(weights), str(tolerance), len(full)]
        row += [int(found.sum()) for found in (falls, stays, ~falls & ~stays & ~rises, rises, full["full"] < 0)]
        for kind in KINDS:
            own = part[part["columns"] == kind]
            row.append(int(((own["full_lower"] > 0) & (own["partial_upper"] <= 0)).sum()))
        rows.append(row)
    head = ["network", "weights", "tolerance", "steps", "full rank falls", "stays", "open", "rises"]
    head += ["rises by the estimates"]
    return markdown([*head, *(f"falls unseen by the {kind}" for kind in KINDS)], rows)


def random_table(ranks: pd.DataFrame) -> str:
    """The full rank beside random layers, over all cut points and images."""
    rows = []
    full = ranks[(ranks["columns"] == "full") & ranks["true_cut"]]
    for (name, weights, tolerance), part in full.groupby(["network", "weights", "tolerance"], sort=False):
        counts = part["beside_random"].value_counts()
        judged = [int(counts.get(found, 0)) for found in ("less", "same", "undecided", "more")]
        ratio = (part["rank"] / part["random"]).median()
        rows.append([_title(str(name)), str(weights), str(tolerance), len(part), *judged, f"{ratio:.2f}"])
    head = ["network", "weights", "tolerance", "ranks", "less than random", "same", "undecided", "more"]
    return markdown([*head, "measured / random, median"], rows)
