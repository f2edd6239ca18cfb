"""Sentences of the page that carry numbers, each from the rows of the CSVs."""

from __future__ import annotations

from itertools import product

import pandas as pd

from beside.collecting import WEIGHTS
from beside.drops import KINDS, SAME
from beside.networks import NAMES
from beside.tables import title

__all__ = ["measured_sentence", "steps_sentence", "verdict_sentences"]

_MAIN = "paper"
_BARELY = 0.5  # held-out accuracy below which a network on this task, which others solve, is barely trained


def measured_sentence(networks: pd.DataFrame) -> str:
    """Which networks are measured and which are not, how well the trained ones were trained, and on what machine."""
    rows = networks.to_dict("records")
    there = {(row["network"], row["weights"]) for row in rows}
    missing = [
        f"the {weights} {title(name)}" for name, weights in product(NAMES, WEIGHTS) if (name, weights) not in there
    ]
    said = []
    for row in rows:
        if row["weights"] == "trained" and row["test_accuracy"] == row["test_accuracy"]:
            name, accuracy = title(row["network"]), row["test_accuracy"]
            said.append(
                f"The trained {name} was trained for {row['train_seconds']:.0f} s and has a held-out accuracy of "
                f"{accuracy:.3f} over {row['classes']:,} classes"
                + (": it is barely trained." if accuracy < _BARELY else ".")
            )
    if missing:
        said.append(f"**Not measured yet: {_listed(missing)}.** The same command measures them.")
    machine = _listed([str(found) for found in dict.fromkeys(networks["device"])])
    torch = _listed([str(found) for found in dict.fromkeys(networks["torch"])])
    return " ".join([*said, f"All ranks were measured on {machine} with torch {torch}."])


def verdict_sentences(ranks: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Whether Lemma 2's bound holds, and whether the full rank falls with depth and faster than random layers."""
    own = pairs[pairs["tolerance"] == _MAIN]
    falls = own[own["partial"] > 0]
    holds, fails, undecided = (int((falls["verdict"] == found).sum()) for found in ("holds", "fails", "open"))
    bound = "does not always bound" if fails else "bounds, wherever this can be decided,"
    once = own[own["columns"] == KINDS[0]]  # the full rank is the same beside every kind
    steps, whole = once[once["adjacent"]], once.groupby(SAME, sort=False)["full_lower"].max() > 0
    down, up = int((steps["full_lower"] > 0).sum()), int((steps["full_upper"] < 0).sum())
    full = ranks[(ranks["columns"] == "full") & ranks["true_cut"] & (ranks["tolerance"] == _MAIN)]
    return (
        f"On these networks the drop of the partial rank {bound} the drop of the full rank: of {len(falls):,} drops of "
        f"the partial rank between two cut points (tolerance `{_MAIN}`), the bound holds for certain in {holds:,}, "
        f"fails for certain in {fails:,}, and is open in {undecided:,}. The full rank falls for certain between some "
        f"two cut points in {int(whole.sum()):,} of {len(whole):,} networks × images, but only in {down:,} of "
        f"{len(steps):,} single steps (it rises for certain in {up or 'none'}), and it is for certain {_beside(full)}."
    )


def steps_sentence(ranks: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Where the full rank falls for certain: at steps to fewer outputs, or between cut points of one size."""
    sizes = ranks.drop_duplicates(["network", "layer"]).set_index(["network", "layer"])["outputs"].to_dict()
    steps = pairs[pairs["adjacent"] & (pairs["columns"] == KINDS[0]) & (pairs["tolerance"] == _MAIN)]
    down = steps[steps["full_lower"] > 0]
    fewer = sum(
        sizes[name, after] < sizes[name, before]
        for name, before, after in zip(down["network"], down["from"], down["to"], strict=True)
    )
    return (
        f"At tolerance `{_MAIN}`, {fewer:,} of the {len(down):,} steps in which the full rank falls for certain lead "
        f"to a layer with fewer outputs."
    )


def _beside(full: pd.DataFrame) -> str:
    """Networks below and above random layers, each with its count."""
    said = []
    for verdict, word in (("less", "below"), ("more", "above")):
        counts = [
            f"{found:,} of {len(part):,} cases for {title(str(name))}"
            for name, part in full.groupby("network", sort=False)
            if (found := int((part["beside_random"] == verdict).sum()))
        ]
        said += [f"{word} that of random layers in {_listed(counts)}"] if counts else []
    return ", and ".join(said) or "neither below nor above that of random layers anywhere"


def _listed(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
