"""The CSVs are made of the profiles that a folder holds, whatever is missing there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from beside.collecting import collect, find
from beside.measuring import Profiles, Question, measure_all
from beside.networks import Network
from torch import nn

ASKED = Question(images=3, patch=2, sketch=5)
DATA = {"seed": 7, "classes": 4, "size": 6}
RECORD = {"data": DATA, "test_accuracy": 0.25, "steps": 12, "device": "some GPU"}


def measured(out: Path, key: str = "k", weights: str = "trained", record: dict[str, object] = RECORD) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)).eval()
    images = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    network = Network("net", weights, model, key, record)
    measure_all(Profiles(out / "profiles", float("inf"), "cpu"), network, images, ASKED)


def collected(out: Path) -> tuple[pd.DataFrame, int]:
    ranks, left = collect(out, ["net"], ASKED, DATA, ["paper", 0.1])
    return ranks, left["net"]


def test_images_that_are_complete_count_under_their_own_numbers(tmp_path):
    measured(tmp_path)
    whole, left = collected(tmp_path)
    assert left == 5  # the untrained network
    shutil.rmtree(tmp_path / "profiles/net-trained-full-1")
    ranks, left = collected(tmp_path)
    assert left == 6
    # image 2 keeps its number, and with it its own partial ranks
    pd.testing.assert_frame_equal(ranks, whole[whole["image"] != 1].reset_index(drop=True))
    assert pd.read_csv(tmp_path / "ranks.csv")["image"].unique().tolist() == [0, 2]
    about = pd.read_csv(tmp_path / "networks.csv").iloc[0]
    assert (about["images"], about["images_asked"], about["trained_on"]) == (2, 3, "some GPU")
    assert (about["test_accuracy"], about["steps"], about["checksum"]) == (0.25, 12, "k")


@pytest.mark.parametrize("gone", [("full-0", "full-2"), ("patch",), ("sketch",)])
def test_one_image_or_one_kind_of_columns_does_not_count(gone, tmp_path):
    measured(tmp_path)
    for name in gone:
        shutil.rmtree(tmp_path / f"profiles/net-trained-{name}")
    ranks, left = collected(tmp_path)
    assert len(ranks) == 0
    assert left == 5 + len(gone)
    assert not (tmp_path / "ranks.csv").exists()


def test_profiles_of_other_weights_or_another_question_do_not_count(tmp_path):
    measured(tmp_path, "old")
    for name in ("patch", "sketch", "full-0"):
        shutil.rmtree(tmp_path / f"profiles/net-trained-{name}")
    kept = tmp_path / "kept"
    (tmp_path / "profiles").rename(kept)
    measured(tmp_path, "new")
    for name in ("full-1", "full-2"):
        shutil.rmtree(tmp_path / f"profiles/net-trained-{name}")
        shutil.copytree(kept / f"net-trained-{name}", tmp_path / f"profiles/net-trained-{name}")
    found = find(tmp_path / "profiles", "net", "trained", ASKED, DATA)
    assert (found.checksum, set(found.full), set(found.partial)) == ("new", {0}, {"patch", "sketch"})
    assert not found.counts
    for question, data in ((ASKED, DATA | {"seed": 8}), (Question(images=2, patch=2, sketch=5), DATA)):
        other = find(tmp_path / "profiles", "net", "trained", question, data)
        assert (other.full, other.partial, other.counts) == ({}, {}, False)


def test_one_image_counts_where_one_is_asked_for(tmp_path):
    measured(tmp_path)
    found = find(tmp_path / "profiles", "net", "trained", ASKED, DATA)
    alone = Question(images=1)
    assert not type(found)("net", "trained", "k", {0: found.full[0]}, found.partial, ASKED).counts
    assert type(found)("net", "trained", "k", {0: found.full[0]}, found.partial, alone).counts


@pytest.mark.parametrize(("checksum", "kept"), [("k", True), ("other", False)])
def test_profiles_without_a_record_take_it_from_the_table(checksum, kept, tmp_path, monkeypatch):
    from beside import measuring

    whole = measuring.rs.jacobian_rank

    def without_record(*arguments, provenance, **options):
        provenance.pop("record")
        return whole(*arguments, provenance=provenance, **options)

    monkeypatch.setattr(measuring.rs, "jacobian_rank", without_record)
    measured(tmp_path)
    row = {"weights": "trained", "checksum": checksum, "test_accuracy": 0.5, "test_images": 8, "train_seconds": 60}
    row |= {"steps": 3, "images_seen": 96, "seed": 0, "recipe": "a recipe", "trained_on": "a GPU"}
    pd.DataFrame([row]).to_csv(tmp_path / "networks.csv", index=False)
    collected(tmp_path)
    about = pd.read_csv(tmp_path / "networks.csv").iloc[0]
    assert (about["test_accuracy"] == 0.5, about["trained_on"] == "a GPU") == (kept, kept)
