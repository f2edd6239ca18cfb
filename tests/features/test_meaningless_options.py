"""Options that nothing would look at are refused: taking them in silence would let a reader believe that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankscope as rs

ROWS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
NET = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()


@pytest.mark.parametrize("source", [ROWS, ROWS.numpy(), {"layer": ROWS}], ids=["tensor", "array", "mapping"])
@pytest.mark.parametrize(
    "option",
    [
        {"data": ROWS},
        {"cut_points": "0"},
        {"samples": 20},
        {"differentiate": "x"},
        {"shared": "mask"},
        {"per_sample": ("t",)},
    ],
    ids=lambda option: next(iter(option)),
)
def test_features_that_are_there_take_no_option_of_a_model(source: Any, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(rs.UsageError, match=f"{name} has no meaning where the source is no model; leave it out"):
        rs.feature_rank(source, **option)


def test_several_are_named_together() -> None:
    with pytest.raises(rs.UsageError, match=r"shared, per_sample have no meaning .* leave them out"):
        rs.feature_rank(ROWS, shared="a", per_sample="b")


def test_moments_have_their_rows_already(tmp_path: Path) -> None:
    run = rs.collect(NET, (ROWS, torch.arange(20) % 2), out=tmp_path, cut_points=["0"], progress=False)
    assert rs.feature_rank(run)["0"].pca_dimension == rs.feature_rank(run, reduce="pool")["0"].pca_dimension
    with pytest.raises(rs.UsageError, match="reduce has no meaning for moments"):
        rs.feature_rank(run, reduce="positions")
    with pytest.raises(rs.UsageError, match="channels has no meaning for moments"):
        rs.feature_rank(run, channels="last")


@pytest.mark.parametrize("name", ["differentiate", "shared", "per_sample"])
def test_layers_without_inputs_take_no_option_about_them(name: str) -> None:
    with pytest.raises(rs.UsageError, match=f"{name} has no meaning without inputs"):
        rs.layers(NET, **{name: "x"})  # type: ignore[arg-type]
