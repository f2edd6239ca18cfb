"""Ranks in long form, drops and verdicts, against plain autograd and NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from beside.drops import drops, verdict
from beside.measuring import OutOfTimeError, Profiles, Question, key_of, measure_all
from beside.networks import Network
from beside.page import filled
from beside.rows import largest_stretch, rank_rows
from beside.tables import chosen_layers, depth_table, lemma_sentence, random_table
from torch import nn

import rankscope as rs

IMAGE = (3, 6, 6)


def network() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 7),
    ).double().eval()  # fmt: skip


def jacobian(model: nn.Sequential, depth: int, x: torch.Tensor) -> np.ndarray:
    """Row by row."""
    x = x.clone().requires_grad_()
    out = model[: depth + 1](x[None]).flatten()
    return np.stack([torch.autograd.grad(value, x, retain_graph=True)[0].flatten().numpy() for value in out])


@pytest.mark.parametrize("tolerance", [0.02, 0.2])
def test_all_columns_are_counted_at_the_threshold_of_the_full_jacobian(tolerance):
    model, images = network(), torch.randn(2, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names = ["0", "2", "5", "7"]
    patch, sketch = rs.Patch(2), rs.Sketch(9, seed=3)
    full = [rs.jacobian_rank(model, x[None], columns="all", cut_points=names) for x in images]
    columns = {"patch": patch, "sketch": sketch}
    partial = {kind: rs.jacobian_rank(model, images, columns=of, cut_points=names) for kind, of in columns.items()}
    drawn = np.stack([
        torch.randn(IMAGE, generator=torch.Generator().manual_seed((3 << 24) + j)).double().flatten().numpy()
        for j in range(9)
    ])  # fmt: skip
    norm = np.linalg.norm(drawn, 2)
    stretch = largest_stretch(sketch, IMAGE)
    assert norm <= stretch <= norm * (1 + 1e-9)
    grid = np.arange(108).reshape(IMAGE)
    chosen = {"full": np.eye(108), "patch": np.eye(108)[:, grid[:, 2:4, 2:4].ravel()], "sketch": drawn.T / norm}

    rows = list(rank_rows(dict(enumerate(full)), partial, {"sketch": stretch}, [tolerance]))
    assert len(rows) == 2 * len(names) * 3
    for row in rows:
        j = jacobian(model, int(row["layer"]), images[row["image"]])
        threshold = tolerance * np.linalg.norm(j, 2)
        assert row["threshold"] == pytest.approx(threshold, rel=1e-9)
        # float64 throughout: a value within 1e-9 of the threshold would be a coincidence
        count = int((np.linalg.svd(j @ chosen[row["columns"]], compute_uv=False) >= threshold).sum())
        assert row["rank"] == row["lower"] == row["upper"] == count
        assert row["outputs"] == len(j)
    at = {(row["image"], row["layer"], row["columns"]): row["rank"] for row in rows}
    assert len(set(at.values())) > 5  # not all full
    assert all(at[i, name, kind] <= at[i, name, "full"] for i in (0, 1) for name in names for kind in columns)
    random = [row for row in rows if "random" in row]
    assert {row["columns"] for row in random} == {"full"}
    assert random[0]["random"] == pytest.approx(rs.theory.rectangular_chain_rank(108, [216], tolerance))


def test_ranks_of_probes_keep_their_bounds():
    model, x = network(), torch.randn(1, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    probes = rs.Lanczos(probes=2, steps=12)  # fewer products than columns
    full = [rs.jacobian_rank(model, x, columns="all", cut_points=["0", "2"], method=probes)]
    rows = list(rank_rows(dict(enumerate(full)), {}, {}, [0.3]))
    assert [row["method"] for row in rows] == ["Lanczos", "exact"]  # the second has 16 rows
    for row in rows:
        j = jacobian(model, int(row["layer"]), x[0])
        count = int((np.linalg.svd(j, compute_uv=False) >= row["threshold"]).sum())
        assert row["lower"] <= count <= row["upper"]
        found = full[0][row["layer"]].spectra[0].rank(rs.Tolerance(atol=row["threshold"]))
        assert (row["rank"], row["lower"], row["upper"]) == (found.value, found.lower, found.upper)
    assert rows[1]["lower"] == rows[1]["upper"]


def table_of(ranks: dict[str, list[tuple[int, int, int]]], **same: object) -> pd.DataFrame:
    """(rank, lower, upper) of every depth."""
    head = {"network": "n", "weights": "trained", "tolerance": "paper", "image": 0, "true_cut": True} | same
    return pd.DataFrame([
        {**head, "depth": d, "layer": f"l{d}", "columns": kind, "rank": rank, "lower": lower, "upper": upper}
        for kind, values in ranks.items() for d, (rank, lower, upper) in enumerate(values)
    ])  # fmt: skip


def exact(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def test_a_drop_has_the_bounds_of_both_ranks():
    ranks = {"full": [(100, 90, 110), (60, 55, 70), (61, 58, 62)], "patch": exact(9, 8, 4), "sketch": exact(9, 9, 9)}
    found = drops(table_of(ranks)).set_index(["columns", "from", "to"])
    first = found.loc["patch", "l0", "l1"]
    assert (first["full"], first["full_lower"], first["full_upper"]) == (40, 20, 55)
    assert (first["partial"], first["partial_lower"], first["partial_upper"]) == (1, 1, 1)
    assert (first["verdict"], first["estimate"], bool(first["adjacent"])) == ("holds", "holds", True)
    second = found.loc["patch", "l1", "l2"]
    assert (second["full"], second["full_lower"], second["full_upper"]) == (-1, -7, 12)
    assert (second["verdict"], second["estimate"]) == ("open", "fails")
    assert not found.loc["patch", "l0", "l2"]["adjacent"]
    assert len(found) == 6


def test_cut_points_inside_a_branch_are_left_out():
    table = table_of({"full": exact(9, 8, 7), "patch": exact(3, 3, 3), "sketch": exact(3, 3, 3)})
    table.loc[table["depth"] == 1, "true_cut"] = False
    found = drops(table)
    assert set(zip(found["from"], found["to"], strict=True)) == {("l0", "l2")}
    assert found["adjacent"].all()


@pytest.mark.parametrize(
    ("full", "partial", "said"),
    [((4, 9), (1, 4), "holds"), ((3, 9), (1, 4), "open"), ((0, 1), (1, 4), "open"), ((-3, 0), (1, 4), "fails")],
)
def test_a_verdict_needs_bounds_that_do_not_overlap(full, partial, said):
    assert verdict(full, partial) == said


def test_exact_ranks_of_products_keep_to_the_lemma():
    random = np.random.default_rng(0)
    for seed in range(40):
        sizes = random.integers(1, 12, size=5)
        chain = [np.eye(12)]
        for rows in sizes:
            chain.append(random.integers(-1, 2, size=(rows, len(chain[-1]))) @ chain[-1])
        columns = {"patch": np.eye(12)[:, :5], "sketch": random.integers(-2, 3, size=(12, 4))}
        ranks = {"full": exact(*(np.linalg.matrix_rank(j) for j in chain))}
        ranks |= {kind: exact(*(np.linalg.matrix_rank(j @ s) for j in chain)) for kind, s in columns.items()}
        found = drops(table_of(ranks, image=seed))
        assert set(found["verdict"]) == {"holds"}
        assert (found["full"] >= found["partial"]).all()


def test_tables_count_what_happened():
    ranks = {"full": exact(10, 10, 6, 7), "patch": exact(3, 3, 3, 1), "sketch": exact(4, 3, 3, 3)}
    found = drops(table_of(ranks))
    last = depth_table(found).splitlines()[-1]
    # three steps: the rank stays, falls (unseen by both) and rises
    assert [cell.strip() for cell in last.strip("|").split("|")] == (
        ["n", "trained", "paper", "3", "1", "1", "0", "1", "1", "1", "1"]
    )
    # patch: l0, l1 → l3 hold (3 ≥ 2), l2 → l3 fails (−1 < 2); sketch: l0 → l1 fails (0 < 1), l0 → l2, l3 hold
    said = "falls in 6 of 12 pairs. The bound holds for certain in 4, fails for certain in 2, and is open in 0"
    assert said in lemma_sentence(found)


def test_the_random_table_counts_verdicts():
    full = table_of({"full": exact(10, 5)})
    full["beside_random"], full["random"] = ["same", "less"], [10.0, 10.0]
    assert random_table(full).splitlines()[-1] == "| n | trained | paper | 2 | 1 | 1 | 0 | 0 | 0.75 |"


def test_the_last_cut_point_of_every_width_is_shown():
    outputs = [8, 8, 4, 4, 4, 4, 4, 4, 4, 2]
    layers = pd.DataFrame({"layer": [f"l{k}" for k in range(10)], "depth": range(10), "outputs": outputs})
    assert chosen_layers(layers) == ["l1", "l4", "l7", "l8", "l9"]


def test_the_page_is_filled_between_its_marks():
    page = "a <!-- begin x -->old<!-- end x --> b <!-- begin y --><!-- end y -->"
    once = filled(page, {"x": "1", "y": "2"})
    assert once == "a <!-- begin x -->\n\n1\n\n<!-- end x --> b <!-- begin y -->\n\n2\n\n<!-- end y -->"
    assert filled(once, {"x": "1", "y": "2"}) == once
    with pytest.raises(SystemExit, match="the page marks a part 'y'; there are x"):
        filled(page, {"x": "1"})


SMALL = Question(images=2, patch=2, sketch=5)
KEPT = {f"net-trained-{what}" for what in ("patch", "sketch", "full-0", "full-1")}


def small(key: str = "k") -> tuple[Network, torch.Tensor]:
    record = {"data": {"seed": 0}}
    return Network("net", "trained", network(), key, record), torch.zeros(2, *IMAGE, dtype=torch.float64)


def test_a_finished_profile_is_found_again(tmp_path, monkeypatch):
    net, images = small()
    measure_all(Profiles(tmp_path, float("inf"), "cpu"), net, images, SMALL)
    assert {p.name for p in tmp_path.iterdir()} == KEPT
    again = Profiles(tmp_path, float("inf"), "cpu")
    found = again.find("net-trained-full-1", key_of("k", SMALL, "full 1, auto", {"seed": 0}))
    assert found is not None
    assert (found.images, found.columns.count) == (("image 1",), 108)
    measured = []
    whole = rs.jacobian_rank
    monkeypatch.setattr(rs, "jacobian_rank", lambda *a, **k: measured.append(1) or whole(*a, **k))
    measure_all(again, net, images, SMALL)
    assert measured == []
    # other weights under the same name are measured anew
    measure_all(again, small("other")[0], images, SMALL)
    assert len(measured) == 4


def test_nothing_begins_that_would_not_end(tmp_path):
    net, images = small()
    measure_all(Profiles(tmp_path, float("-inf"), "cpu"), net, images, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_ends_when_the_time_is_over(tmp_path, monkeypatch):
    net, images = small()
    clock = itertools.count()
    monkeypatch.setattr("beside.measuring.time.monotonic", lambda: float(next(clock)))
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    profiles = Profiles(tmp_path, 1.5, "cpu")  # the question whether there is time is the first look at the clock
    profiles.measure("one", "patch", net, images, "key", columns=rs.Patch(2))
    assert next(clock) > 1  # it began
    assert not (tmp_path / "one").exists()
    assert all(bool((before[name] == value).all()) for name, value in net.model.state_dict().items())
    with pytest.raises(OutOfTimeError, match="one"):
        profiles._watch("one")(0, None, "")
