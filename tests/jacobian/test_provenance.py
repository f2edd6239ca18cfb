"""What the caller wants kept with a profile."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind

NET, X = nn.Sequential(nn.Linear(6, 4)).eval(), torch.zeros(1, 6)


def test_k13_every_name_is_kept(tmp_path: Path) -> None:
    given = {"commit": "abc", "run": 7, "tags": ["a", "b"], "nested": {"share": 0.5}, "nan": float("nan")}
    profile = rs.jacobian_rank(NET, X, progress=False, provenance={**given, "model": "mine", "weights": "epoch 3"})
    assert (profile.model, profile.weights) == ("mine", "epoch 3")
    assert profile.provenance["commit"] == "abc"
    assert profile.provenance["tags"] == ("a", "b")
    again = rs.JacobianProfile.load(profile.save(tmp_path))
    assert {k: v for k, v in again.provenance.items() if k != "nan"} == {
        k: v for k, v in profile.provenance.items() if k != "nan"
    }
    assert profile.to_dict()["provenance"]["nan"] is None


class Place(Enum):
    HOME = "home"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (Path("a/b"), "a/b"),
        ({3}, (3,)),
        (Place.HOME, "home"),
        (range(3), (0, 1, 2)),
        (np.float32(0.5), 0.5),
        (torch.Size([2, 3]), (2, 3)),
        ({"in": [{"deep": [1, {2}]}]}, {"in": ({"deep": (1, (2,))},)}),
        ({1: 2}, {1: 2}),
        (float("inf"), float("inf")),
    ],
)
def test_k13_what_is_kept_is_what_comes_back(given: Any, kept: Any, tmp_path: Path) -> None:
    profile = rs.jacobian_rank(NET, X, progress=False, provenance={"v": given})
    assert (profile.provenance["v"], type(profile.provenance["v"])) == (kept, type(kept))
    assert rs.JacobianProfile.load(profile.save(tmp_path)) == profile


def test_names_of_the_record_itself_are_kept_apart() -> None:
    """What once was an argument of the record, and so an error after the sweep."""
    given = {"seconds": 3.0, "layers": "many", "method": "by hand", "facts": "none", "provenance": "here"}
    profile = rs.jacobian_rank(NET, X, progress=False, provenance=given)
    assert profile.provenance == given
    assert [layer.name for layer in profile.layers] == ["0"]


def test_notes_are_texts_or_facts() -> None:
    fact = Fact(FactKind.NO_GRAPH)
    for notes, expected in [
        ("one text", (Fact("note", {"text": "one text"}),)),
        (["a", fact], (Fact("note", {"text": "a"}), fact)),
    ]:
        assert rs.jacobian_rank(NET, X, progress=False, provenance={"notes": notes}).facts == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": NET}, r"provenance\['model'\] is Sequential"),
        ({"weights": 3}, r"provenance\['weights'\] is 3; give a text"),
        ({"notes": [3]}, r"provenance\['notes'\] is \[3\]; give a list of texts or facts"),
        ({"skipped": ["a"]}, r"provenance\['skipped'\] is \['a'\]"),
        ({"commit": object()}, r"provenance\['commit'\] cannot be kept: a object has no form in JSON"),
        ({"bytes": b"ab"}, r"provenance\['bytes'\] cannot be kept: a bytes has no form in JSON"),
        ({"deep": {"er": [NET]}}, r"provenance\['deep'\] cannot be kept"),
        ({"complex": np.zeros(2, complex)}, r"provenance\['complex'\] cannot be kept"),
        ({3: "x"}, "provenance has the name 3"),
        (["commit"], r"provenance is \['commit'\]; give a mapping"),
    ],
)
def test_k13_what_cannot_be_kept_is_refused_before_anything_is_measured(given: Any, words: str) -> None:
    class Called(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the model was called")

    with pytest.raises(rs.UsageError, match=words):
        rs.jacobian_rank(Called(6, 4).eval(), X, progress=False, provenance=given)
