"""What a folder of profiles holds: rows of the two CSVs, from profiles alone, without a network or a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import rankscope as rs
from beside.measuring import Question, key_of
from beside.rows import largest_stretch, rank_rows

__all__ = ["WEIGHTS", "Found", "collect", "find"]

WEIGHTS = ("untrained", "trained")
_LEAST = 2  # images that a network needs in order to count: one image is an anecdote
_OF_TRAINING = ("test_accuracy", "test_images", "train_seconds", "steps", "images_seen", "seed", "recipe")


@dataclass(frozen=True)
class Found:
    """The profiles of one network that are there: full ones by image, partial ones by their columns."""

    network: str
    weights: str
    checksum: str
    full: dict[int, rs.JacobianProfile]
    partial: dict[str, rs.JacobianProfile]
    question: Question

    @property
    def left(self) -> int:
        """Measurements of the question that are missing."""
        return self.question.images + len(self.question.columns) - len(self.full) - len(self.partial)

    @property
    def counts(self) -> bool:
        """Whether all kinds of columns are measured of two images, or of one where one is asked for."""
        return len(self.partial) == len(self.question.columns) and len(self.full) >= min(_LEAST, self.question.images)


def find(folder: Path, network: str, weights: str, question: Question, data: dict[str, Any]) -> Found:
    """Profiles of the same question and the same weights; those of the patch, which come first, say which weights."""
    names = {f"{network}-{weights}-{kind}": str(columns) for kind, columns in question.columns.items()}
    names |= {f"{network}-{weights}-full-{i}": f"full {i}, {question.full}" for i in range(question.images)}
    checksum, profiles = "", {}
    for name, what in names.items():
        try:
            profile = rs.JacobianProfile.load(folder / name)
        except rs.RankscopeError:
            continue
        key = str(profile.provenance.get("key", ""))
        checksum = checksum or key.partition(";")[0]
        if key == key_of(checksum, question, what, data):
            profiles[name] = profile
    return Found(
        network,
        weights,
        checksum,
        {i: p for i in range(question.images) if (p := profiles.get(f"{network}-{weights}-full-{i}"))},
        {kind: p for kind in question.columns if (p := profiles.get(f"{network}-{weights}-{kind}"))},
        question,
    )


def rows_of(found: Found, tolerances: list[str | float]) -> list[dict[str, Any]]:
    """Rows of ranks.csv."""
    shape = next(iter(found.full.values())).input_shape
    stretch = {"sketch": largest_stretch(rs.Sketch(found.question.sketch), shape)}
    named = {"network": found.network, "weights": found.weights}
    return [named | row for row in rank_rows(found.full, found.partial, stretch, tolerances)]


def describe(found: Found, data: dict[str, Any], earlier: pd.DataFrame) -> dict[str, Any]:
    """The row of networks.csv.

    How the network was trained is what its profiles keep of it; where they keep nothing, it is what an earlier
    networks.csv says of the same weights.
    """
    profiles, question = list(found.full.values()), found.question
    first = profiles[0]
    record: dict[str, Any] = dict(first.provenance.get("record", {}))
    training = {name: record.get(name) for name in _OF_TRAINING} | {"trained_on": record.get("device")}
    if not record and len(earlier):
        same = earlier[earlier["checksum"] == found.checksum]
        training |= {name: same[name].iloc[-1] for name in training if len(same)}
    return {
        "network": found.network,
        "weights": found.weights,
        **training,
        "data_seed": data["seed"],
        "classes": data["classes"],
        "side": data["size"],
        "images": len(profiles),
        "images_asked": question.images,
        "patch": question.patch,
        "sketch": question.sketch,
        "method": str(question.full),
        "memory_budget": question.budget,
        "dtype": first.dtype,
        "full_seconds": round(sum(p.seconds for p in profiles) / len(profiles), 2),
        "peak_gb": round(max(p.peak_memory or 0 for p in profiles) / 2**30, 2),
        "device": first.device,
        **dict(first.versions),
        "checksum": found.checksum,
    }


def collect(
    out: Path, networks: Sequence[str], question: Question, data: dict[str, Any], tolerances: list[str | float]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Write ranks.csv and networks.csv of the networks that count; the ranks, and how many measurements each lacks.

    Neither file is touched where no network counts.
    """
    file = out / "networks.csv"
    earlier = pd.read_csv(file, dtype={"checksum": str}) if file.exists() else pd.DataFrame()
    ranks: list[dict[str, Any]] = []
    about: list[dict[str, Any]] = []
    left = dict.fromkeys(networks, 0)
    for name in networks:
        for weights in WEIGHTS:
            found = find(out / "profiles", name, weights, question, data)
            left[name] += found.left
            if found.counts:
                ranks += rows_of(found, tolerances)
                about.append(describe(found, data, earlier))
    table = pd.DataFrame(ranks)
    if ranks:
        table.to_csv(out / "ranks.csv", index=False, float_format="%.6g")
        pd.DataFrame(about).to_csv(file, index=False)
    return table, left
