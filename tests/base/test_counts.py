"""Counts that cannot be meant are refused at once: before anything is allocated, read or computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope import theory
from rankscope._base.checks import count_of, seed_of, shape_of

NET = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
X = torch.randn(3, 4)
HUGE = 10**20

CALLS: dict[str, Callable[[Any, Path], object]] = {
    "limit": lambda n, _: rs.jacobian_rank(NET, X, limit=n, progress=False),
    "chunk_size": lambda n, _: rs.jacobian_rank(NET, X, chunk_size=n, progress=False),
    "k": lambda n, _: rs.jacobian_rank(NET, X, columns=rs.Sketch(n), progress=False),
    "probes": lambda n, _: rs.jacobian_rank(NET, X, columns="all", method=rs.Lanczos(probes=n), progress=False),
    "steps": lambda n, _: rs.jacobian_rank(NET, X, columns="all", method=rs.Lanczos(steps=n), progress=False),
    "top": lambda n, _: rs.chain_exponents(NET, X, top=n, progress=False),
    "samples": lambda n, _: rs.local_feature_rank(NET, X[:1], samples=n),
    "batch_size": lambda n, _: rs.feature_rank(NET, X, batch_size=n),
    "shard_size": lambda n, out: rs.collect(NET, (X, torch.arange(3)), out=out, shard_size=n, progress=False),
    "num_workers": lambda n, out: rs.collect(NET, (X, torch.arange(3)), out=out, num_workers=n, progress=False),
    "every": lambda n, _: rs.RankMonitor(NET, X, every=n),
    "samples of a probe": lambda n, _: rs.probe(nn.ReLU(), input_shape=(4,), samples=n),
    "jacobian_points": lambda n, _: rs.probe(nn.ReLU(), input_shape=(4,), jacobian_points=n),
    "depth": lambda n, _: theory.lyapunov_exponents(lambda rng: rng.standard_normal((3, 3)), depth=n),
    "burn_in": lambda n, _: theory.lyapunov_exponents([torch.eye(3).numpy()] * 4, burn_in=n),
    "n": lambda n, _: theory.gaussian_exponents(n),
}


@pytest.mark.parametrize("count", [HUGE, 10**15, -1])
@pytest.mark.parametrize("name", CALLS)
def test_a_count_that_cannot_be_meant(name: str, count: int, tmp_path: Path) -> None:
    with pytest.raises(
        rs.UsageError, match=rf"{name.partition(' ')[0]} is .*; it must be|a sketch of -1 directions is empty"
    ):
        CALLS[name](count, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert rs.feature_rank(NET, X, batch_size=10**9) == rs.feature_rank(NET, X, batch_size=3)
    assert rs.jacobian_rank(NET, X, limit=10**9, chunk_size=10**9, progress=False).function_rank == (4, 4)


def test_seeds_go_as_far_as_those_of_torch() -> None:
    assert seed_of(2**63 - 1) == 2**63 - 1
    for wrong in (2**63, -1):
        with pytest.raises(rs.UsageError, match="seed is"):
            seed_of(wrong)
    with pytest.raises(rs.UsageError, match="at most 1,000,000,000"):
        count_of(10**9 + 1, "limit")


@pytest.mark.parametrize("sizes", [(2**16, 2**16), (HUGE,), (3, 10**9)])
def test_a_sample_that_no_memory_holds(sizes: tuple[int, ...]) -> None:
    with pytest.raises(rs.UsageError, match="give the sizes of one sample"):
        shape_of(sizes, "input_shape")
