"""Refusals that name what is wrong and the spelling that is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.errors import UsageError
from rankscope.features import collect

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("option", ["shared", "per_sample"])
@pytest.mark.parametrize("measure", [rs.jacobian_rank, rs.feature_rank])
def test_a_name_that_forward_does_not_take(measure: Any, option: str) -> None:
    with pytest.raises(rs.UsageError, match=f"{option} names 'tt', which forward does not take; it takes x, t"):
        measure(Timed().eval(), {"x": X, "tt": torch.zeros(6)}, **{option: ("tt",)})


def test_differentiate_names_what_forward_takes() -> None:
    with pytest.raises(rs.UsageError, match=r"'tt', which is not passed on: .*\(it takes x, t\)"):
        rs.jacobian_rank(Timed().eval(), {"x": X, "tt": torch.zeros(6)}, differentiate="tt")


@pytest.mark.parametrize("measure", [rs.jacobian_rank, rs.feature_rank, rs.local_feature_rank, rs.layers])
def test_one_sample_without_a_batch_dimension(measure: Any) -> None:
    with pytest.raises(rs.DataError, match=r"give x\[None\]"):
        measure(nn.Linear(4, 3), X[0])


def test_an_image_without_a_batch_dimension() -> None:
    with pytest.raises(rs.ModelError, match=r"give x\[None\] if it is one sample"):
        rs.jacobian_rank(nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8))


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_not_this_folder(path: str) -> None:
    net = nn.Linear(4, 3)
    with pytest.raises(rs.UsageError, match="checkpoint is empty"):
        rs.jacobian_rank(net, X, checkpoint=path)
    with pytest.raises(rs.UsageError, match="out is empty"):
        rs.collect(nn.Sequential(net), (X, torch.arange(6) % 3), out=path)
    with pytest.raises(rs.UsageError, match="path is empty"):
        rs.Collection.load(path)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_shard_is_named(lost: int, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    rs.collect(net, (X, torch.arange(6) % 3), out=tmp_path, shard_size=2, batch_size=2, progress=False)
    (tmp_path / f"shard-0000{lost}.safetensors").unlink()
    with pytest.raises(rs.OutputError, match=f"shard-0000{lost}.safetensors is missing"):
        rs.Collection.load(tmp_path)


def test_a_loader_of_a_stream_is_refused_by_the_name_of_the_stream(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset[tuple[torch.Tensor, int]]):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
            yield torch.ones(3), 0

    for data in (Stream(), DataLoader(Stream(), batch_size=2)):
        with pytest.raises(UsageError, match=r"^Stream has no order to be taken up again; give a map-style data set$"):
            collect(nn.Sequential(nn.Linear(3, 2)), data, out=tmp_path)
