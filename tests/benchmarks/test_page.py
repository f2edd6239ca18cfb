"""The page in docs/ says what its CSVs say, and its figures show it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from beside.drops import drops
from beside.figures import depth_figure, drops_figure
from beside.page import filled, made_of
from beside.sentences import measured_sentence, steps_sentence, verdict_sentences
from beside.tables import failures_table, networks_table
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "full-rank"


@pytest.fixture(scope="module")
def ranks() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "ranks.csv")


@pytest.fixture(scope="module")
def pairs(ranks) -> pd.DataFrame:
    return drops(ranks)


def test_the_page_agrees_with_its_tables():
    page = (DOCS / "full-rank.md").read_text(encoding="utf-8")
    parts = made_of(RESULTS)
    assert filled(page, parts) == page
    assert set(re.findall(r"<!-- begin ([\w-]+) -->", page)) == set(parts)


def test_both_tables_are_of_the_same_networks_and_images(ranks):
    networks = pd.read_csv(RESULTS / "networks.csv").set_index(["network", "weights"])
    images = ranks.groupby(["network", "weights"])["image"].nunique()
    assert images.to_dict() == networks["images"].to_dict()
    assert (images >= 2).all()
    columns = ranks.groupby(["network", "weights", "image", "layer", "tolerance"])["columns"].agg(list)
    assert columns.map(lambda found: found == ["full", "patch", "sketch"]).all()


def test_no_partial_rank_exceeds_the_full_rank(ranks):
    at = ranks.set_index(["network", "weights", "tolerance", "image", "layer"])
    full = at.loc[at["columns"] == "full", "upper"]
    for kind in ("patch", "sketch"):
        assert (at.loc[at["columns"] == kind, "lower"] <= full).all()
    assert ((ranks["lower"] <= ranks["rank"]) & (ranks["rank"] <= ranks["upper"])).all()


def test_the_verdict_counts_the_pairs(ranks):
    # counted here one pair at a time, from the ranks alone
    counts, falls, whole = {"holds": 0, "fails": 0, "open": 0}, 0, []
    read = ranks[(ranks["tolerance"] == "paper") & ranks["true_cut"]]
    for _, part in read.groupby(["network", "weights", "image"]):
        by_kind = {k: p.sort_values("depth")[["rank", "lower", "upper"]].to_numpy() for k, p in part.groupby("columns")}
        full = by_kind["full"]
        steps = [int(full[k, 1]) - int(full[k + 1, 2]) for k in range(len(full) - 1)]
        whole.append((sum(step > 0 for step in steps), len(steps)))
        for kind in ("patch", "sketch"):
            own = by_kind[kind]
            for a in range(len(full)):
                for b in range(a + 1, len(full)):
                    if own[a, 0] <= own[b, 0]:
                        continue
                    falls += 1
                    if full[a, 1] - full[b, 2] >= own[a, 2] - own[b, 1]:
                        counts["holds"] += 1
                    elif full[a, 2] - full[b, 1] < own[a, 1] - own[b, 2]:
                        counts["fails"] += 1
                    else:
                        counts["open"] += 1
    text = verdict_sentences(ranks, drops(ranks))
    assert f"of {falls:,} drops of the partial rank" in text
    assert (
        f"certain in {counts['holds']:,}, fails for certain in {counts['fails']:,}, and is open in {counts['open']:,}"
        in text
    )
    assert f"only in {sum(w[0] for w in whole):,} of {sum(w[1] for w in whole):,} single steps" in text


def made(values: dict[str, list[int]], **same: object) -> pd.DataFrame:
    """Exact ranks of every depth."""
    head = {"network": "resnet18", "weights": "trained", "tolerance": "paper", "image": 0, "true_cut": True} | same
    return pd.DataFrame([
        {**head, "depth": d, "layer": f"l{d}", "columns": kind, "rank": rank, "lower": rank, "upper": rank,
         "outputs": [20, 20, 8, 8][d], "random": 9.0, "beside_random": ["same", "less", "less", "more"][d]}
        for kind, ranks in values.items() for d, rank in enumerate(ranks)
    ])  # fmt: skip


def test_sentences_of_a_network_where_all_is_decided():
    table = made({"full": [12, 10, 6, 7], "patch": [5, 4, 4, 2], "sketch": [6, 6, 6, 6]})
    found = drops(table)
    text = verdict_sentences(table, found)
    assert "does not always bound the drop of the full rank: of 5 drops" in text
    assert "holds for certain in 4, fails for certain in 1, and is open in 0" in text
    assert "in 1 of 1 networks × images, but only in 2 of 3 single steps (it rises for certain in 1)" in text
    assert "below that of random layers in 2 of 4 cases for ResNet-18, and above that" in text
    assert "1 of the 2 steps in which the full rank falls for certain lead" in steps_sentence(table, found)
    assert failures_table(found).splitlines()[2:] == [
        "| paper | ResNet-18 | trained | patch | 1 | `l2` to `l3` | -1 | 2 |"
    ]
    quiet = made({"full": [12, 10, 6, 6], "patch": [5, 4, 4, 4], "sketch": [6, 6, 6, 6]}, network="other")
    quiet["beside_random"] = "same"
    text = verdict_sentences(quiet, drops(quiet))
    assert "the partial rank bounds, wherever this can be decided, the drop of the full rank" in text
    assert "(it rises for certain in none)" in text
    assert "neither below nor above that of random layers anywhere" in text
    assert failures_table(drops(quiet)) == "There is none."


def networks(**changed: object) -> pd.DataFrame:
    row = {"network": "resnet50", "weights": "trained", "images": 2, "train_seconds": 60.2, "images_seen": 4096.0}
    row |= {
        "test_accuracy": 0.31,
        "classes": 1000,
        "full_seconds": 9.6,
        "peak_gb": 2.24,
        "device": "d",
        "torch": "2.11",
    }
    return pd.DataFrame([row | changed])


@pytest.mark.parametrize(("accuracy", "barely"), [(0.31, True), (0.97, False)])
def test_a_network_that_is_barely_trained_is_named(accuracy, barely):
    text = measured_sentence(networks(test_accuracy=accuracy))
    assert f"was trained for 60 s and has a held-out accuracy of {accuracy:.3f} over 1,000 classes" in text
    assert ("it is barely trained" in text) is barely
    missing = "the untrained ResNet-18, the trained ResNet-18, the untrained ResNet-50, the untrained ViT-T and the"
    assert f"Not measured yet: {missing} trained ViT-T." in text


def test_nothing_is_missing_where_all_networks_are_measured():
    names = ("resnet18", "resnet50", "vit_tiny_patch16_224")
    every = [networks(network=name, weights=weights) for name in names for weights in ("trained", "untrained")]
    assert "Not measured" not in measured_sentence(pd.concat(every))


def test_what_is_not_known_of_a_training_is_a_dash():
    known = networks_table(networks()).splitlines()[-1]
    assert known == "| ResNet-50 | trained | 2 | 60 s | 4,096 | 31.0% | 10 s | 2.2 GB |"
    lost = networks(train_seconds=np.nan, images_seen=np.nan, test_accuracy=np.nan)
    assert networks_table(lost).splitlines()[-1] == "| ResNet-50 | trained | 2 | – | – | – | 10 s | 2.2 GB |"
    assert "held-out" not in measured_sentence(lost)


def test_the_figure_of_drops_shows_every_fall(pairs):
    figure = drops_figure(pairs)
    read = pairs[(pairs["tolerance"] == "paper") & (pairs["partial"] > 0)]
    shown = {ax.get_title(): sum(len(c.get_offsets()) for c in ax.collections) for ax in figure.axes if ax.collections}
    titles = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit_tiny_patch16_224": "ViT-T"}
    sizes = read.groupby(["network", "weights"]).size()
    assert shown == {f"{titles[name]}, {weights}": count for (name, weights), count in sizes.items()}
    low, high = figure.axes[0].get_ylim()
    assert low < read["partial"].min()
    assert read["partial"].max() < high


def test_the_figure_of_depth_shows_medians_and_bounds(ranks):
    figure = depth_figure(ranks)
    names = list(dict.fromkeys(ranks["network"]))
    for k, name in enumerate(names):
        ax = figure.axes[k]
        part = ranks[(ranks["network"] == name) & (ranks["tolerance"] == "paper") & (ranks["columns"] == "full")]
        lines = {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.lines}
        for weights, own in part.groupby("weights"):
            table = own.pivot(index="image", columns="depth", values="rank").to_numpy()
            assert lines[f"full, {weights}"].tolist() == np.median(table, axis=0).tolist()
        band = {tuple(point) for c in ax.collections for point in c.get_paths()[0].vertices}
        bounds = part.groupby(["weights", "depth"]).agg({"lower": "min", "upper": "max"}).reset_index()
        edges = pd.concat([bounds["lower"], bounds["upper"]])
        assert set(zip(pd.concat([bounds["depth"] + 1] * 2), edges, strict=True)) == band
        assert lines["random layers, same widths"].max() == part["random"].max()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"full, trained", "full, untrained", "patch, trained"} < set(labels)
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize("name", ["depth", "drops"])
def test_figures_fit_the_page(name):
    with Image.open(DOCS / f"images/full-rank-{name}.png") as picture:
        assert picture.width >= 1200
        assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)  # opaque: dark pages show it as it is
