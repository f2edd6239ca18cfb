"""Tables of the page, in Markdown, each from the rows of ranks.csv and networks.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from beside.drops import KINDS

__all__ = ["TITLES", "depth_table", "failures_table", "lemma_sentence", "lemma_table", "networks_table", "random_table"]
__all__ += ["chosen_layers", "markdown", "ranks_table", "title"]

TITLES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit_tiny_patch16_224": "ViT-T"}
_MAIN = "paper"  # the tolerance of the tables that show one


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value) == int(value) else f"{value:,.1f}"


def title(name: str) -> str:
    return TITLES.get(name, name)


def networks_table(networks: pd.DataFrame) -> str:
    rows = []
    for row in networks.to_dict("records"):
        # the profiles of a trained network may have outlived what was written of its training
        known = {
            "train_seconds": f"{row['train_seconds']:.0f} s",
            "images_seen": f"{row['images_seen']:,.0f}",
            "test_accuracy": f"{100 * row['test_accuracy']:.1f}%",
        }
        training = [text if row[name] == row[name] else "–" for name, text in known.items()]
        rows.append([
            title(row["network"]), row["weights"], row["images"], *training, f"{row['full_seconds']:.0f} s",
            f"{row['peak_gb']:.1f} GB",
        ])  # fmt: skip
    head = ["network", "weights", "images", "training", "images seen", "held-out top-1"]
    return markdown([*head, "full Jacobian, one image", "peak memory"], rows)


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
                title(str(name)),
                f"`{layer}`",
                int(at["outputs"].iloc[0]),
                round(full["random"].iloc[0]),
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
        share = f"{100 * seen:.1f}%" if seen == seen else "–"
        rows.append([title(str(name)), str(weights), str(kind), len(part), len(falls), *counts, estimated, share])
    head = ["network", "weights", "columns", "pairs", "partial rank falls", "bound holds", "open", "bound fails"]
    return markdown([*head, "fails by the estimates", "share of the drop seen, median"], rows)


def failures_table(pairs: pd.DataFrame) -> str:
    """Where the bound fails for certain: one row a pair of cut points and kind of columns, medians over the images."""
    failed = pairs[(pairs["verdict"] == "fails") & (pairs["partial"] > 0)]
    rows = []
    for tolerance in dict.fromkeys(pairs["tolerance"]):
        of_tolerance = failed[failed["tolerance"] == tolerance]
        for same, part in of_tolerance.groupby(["network", "weights", "columns"], sort=False):
            most = (part["partial"] - part["full"]).idxmax()
            name, weights, kind = map(str, same)
            where = f"`{part.loc[most, 'from']}` to `{part.loc[most, 'to']}`"
            drop = [int(part.loc[most, which]) for which in ("full", "partial")]
            rows.append([str(tolerance), title(name), weights, kind, len(part), where, *drop])
    head = ["tolerance", "network", "weights", "columns", "failures", "largest one", "full rank drops by"]
    return markdown([*head, "partial rank drops by"], rows) if rows else "There is none."


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
        row: list[Any] = [title(str(name)), str(weights), str(tolerance), len(full)]
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
        rows.append([title(str(name)), str(weights), str(tolerance), len(part), *judged, f"{ratio:.2f}"])
    head = ["network", "weights", "tolerance", "ranks", "less than random", "same", "undecided", "more"]
    return markdown([*head, "measured / random, median"], rows)
