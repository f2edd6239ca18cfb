"""The demo at reduced size: one page, its JSON, profiles beside it; nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.demo.run import run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, digits=4, patch=2)
    return out


def test_record(demo: Path):
    record = json.loads((demo / "demo.json").read_text())
    assert record["schema_version"] == 1
    assert {"digits", "photographs", "features", "classification", "deficit"} <= {s["name"] for s in record["sections"]}
    for section in record["sections"]:
        assert section["findings"]
        for place in section["profiles"].values():
            assert rs.JacobianProfile.load(demo / place).function_rank


def test_digits_profile_is_the_full_jacobian(demo: Path):
    profile = rs.JacobianProfile.load(demo / "digits-trained")
    assert profile.layers[0].columns == 64
    assert profile.function_rank[-1] == 10  # ten logits, all independent
    assert all(layer.estimates(profile.tolerance)[0].certified for layer in profile.layers)


def test_random_weights_are_labelled(demo: Path):
    profile = rs.JacobianProfile.load(demo / "resnet18-random")
    assert {FactKind.RANDOM_WEIGHTS, FactKind.BATCHNORM_SET} <= {fact.kind for fact in profile.facts}
    assert "random weights" in (demo / "report.html").read_text()


def test_page_needs_nothing_from_outside(demo: Path):
    page = (demo / "report.html").read_text()
    assert not re.search(r'(?:src|href)\s*=\s*["\'](?!#|data:)', page)
    assert "@import" not in page
    assert page.count("<svg") >= 5


def test_feature_space_of_digits(demo: Path):
    values = {s["name"]: s["values"] for s in json.loads((demo / "demo.json").read_text())["sections"]}
    assert values["features"]["pca_dimension"]["fc"] == 10
    low, high = values["classification"]["interval"]
    assert 1 < low <= values["classification"]["classification_dimension"] <= high <= 10  # ten classes: nine suffice
    assert 0 <= values["deficit"]["deficit_of_5"] <= 1
    assert set(values["deficit"]["status"]) == set("0123456789")


def test_theory_of_random_chains(demo: Path):
    values = {s["name"]: s["values"] for s in json.loads((demo / "demo.json").read_text())["sections"]}["theory"]
    # the law is within 1.1 of the mean, one chain within three standard deviations of about 0.7
    assert values["jacobian_rank"] == pytest.approx(values["predicted_jacobian_rank"], abs=3.2)
    assert values["jacobian_rank_with_skip_connections"] == 200
    page = (demo / "report.html").read_text()
    assert "random layers, same widths" in page
    assert "theory, rank" in page


def test_what_a_number_means_is_said_once(demo: Path):
    page = (demo / "report.html").read_text()
    assert page.count("The random Gaussian chain has one independent") == 1
    record = json.loads((demo / "demo.json").read_text())  # each section by itself has it
    texts = [[f["text"] for f in s["findings"]] for s in record["sections"]]
    assert sum(any("The random Gaussian chain has one" in t for t in found) for found in texts) == 2
