"""Layers that are given no row of a sample, and samples whose place in a pass decides what they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind


class Tabled(nn.Module):
    """``scale`` is applied to a table of the model's own; to ``rows`` of it."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = rows
        self.stem, self.scale, self.head = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 3)
        self.table = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.head(torch.tanh(self.stem(x)) + self.scale(self.table[: self.rows]).sum(0))
        return h


class Twice(Tabled):
    """The first of two calls has rows of samples, and the second has none."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(torch.tanh(h) + self.stem(h[:0]).sum(0))


class Placed(nn.Module):
    """What a sample gives depends on its place (``steps``) or on how many share its pass (``count``)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.table = kind, nn.Parameter(torch.randn(40, 8))
        self.stem, self.added, self.head = nn.Linear(2, 8), nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if self.kind == "steps":
            h = h + self.table[: len(h)]
        elif self.kind == "count":
            h = h / len(h)
        elif self.kind == "own":
            h = h + self.table[0]
        out: Tensor = self.head(self.added(h))
        return out


def collect(net: nn.Module, x: Tensor, out: Path, **options: Any) -> rs.Collection:
    return rs.collect(net, (x, None), out=out, head="head", progress=False, **options)


@pytest.mark.parametrize("rows", [0, 6])
@pytest.mark.parametrize("named", [["scale"], ["stem", "scale"], "sc*"])
def test_a_layer_of_no_sample_is_refused_by_name(rows: int, named: Any, tmp_path: Path) -> None:
    """Also where it has as many rows as there are samples in each pass."""
    net, x = Tabled(rows).eval(), torch.randn(12, 4)
    said = r"'scale' returns a tensor of shape \(6, 4" if rows else "'scale' is called, but with no row of any sample"
    with pytest.raises(rs.CutPointError, match=said):
        rs.feature_rank(net, x, cut_points=named, batch_size=6)
    with pytest.raises(rs.CutPointError, match=said):
        collect(net, x, tmp_path, cut_points=named, batch_size=6)
    with pytest.raises(rs.CutPointError, match=said):
        rs.intrinsic_dimension(net, x, cut_points=named, batch_size=6)


@pytest.mark.parametrize("cut_points", ["all", ["stem", "*"]])
def test_of_a_word_or_a_glob_it_is_left_out_and_named(cut_points: Any, tmp_path: Path) -> None:
    net, x = Tabled(0).eval(), torch.randn(12, 4)
    profile = rs.feature_rank(net, x, cut_points=cut_points)
    found = collect(net, x, tmp_path, cut_points=cut_points)
    assert [one.name for one in profile.layers] == list(found.moments) == ["stem", "head"]
    for facts in (profile.facts, found.facts):
        (fact,) = of_kind(facts, FactKind.NO_ROWS)
        assert fact["names"] == ("scale",)
        assert not of_kind(facts, FactKind.NOT_CALLED)
    assert "'scale' was left out, since it is called with no row of any sample." in profile.notes


def test_a_name_stands_for_its_calls_that_have_rows(tmp_path: Path) -> None:
    net, x = Twice(0).eval(), torch.randn(12, 4)
    profile, found = rs.feature_rank(net, x, cut_points=["stem"]), collect(net, x, tmp_path, cut_points=["stem"])
    assert [one.name for one in profile.layers] == list(found.moments) == ["stem#1"]
    for facts in (profile.facts, found.facts):
        assert [fact["names"] for fact in of_kind(facts, FactKind.NO_ROWS)] == [("stem#2",)]


@pytest.mark.parametrize("kind", ["steps", "count", "own"])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_samples_are_called_alone_where_their_place_decides(kind: str, batch_size: int, tmp_path: Path) -> None:
    net, x = Placed(kind).eval(), torch.randn(40, 2)
    rows: list[Tensor] = []
    handle = net.get_submodule("added").register_forward_hook(lambda _m, _a, out: rows.append(out.detach()))
    for one in x:
        net(one[None])
    handle.remove()
    wanted = torch.cat(rows).double().numpy()
    profile = rs.feature_rank(net, x, cut_points=["added"], batch_size=batch_size)
    found = collect(net, x, tmp_path, cut_points=["added"], batch_size=batch_size)
    assert profile["added"].pca_dimension == np.linalg.matrix_rank(wanted - wanted.mean(0), tol=1e-4) == 2
    np.testing.assert_allclose(found.features.numpy(), wanted, rtol=1e-5, atol=1e-6)
    alone = [] if kind == "own" or batch_size == 1 else [{"coupled": True, "place": True}]
    for facts in (profile.facts, found.facts):
        assert [dict(fact.values) for fact in of_kind(facts, FactKind.CALLED_ALONE)] == alone


@pytest.mark.parametrize("looped", [False, True])
def test_blocks_is_a_word_also_where_a_module_has_that_name(looped: bool, tmp_path: Path) -> None:
    """As in most vision transformers; the name in a list is the module."""

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = [nn.Linear(4, 4), nn.Linear(4, 4)]
            self.blocks = nn.ModuleList(parts) if looped else nn.Sequential(*parts)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks if looped else [self.blocks]:
                x = torch.tanh(block(x))
            return self.head(x)

    net, x = Stacked().eval(), torch.randn(12, 4)
    jacobian = [one.name for one in rs.jacobian_rank(net, x[:2], progress=False).layers]
    assert "blocks.1" in jacobian
    assert [one.name for one in rs.feature_rank(net, x).layers] == jacobian
    assert list(collect(net, x, tmp_path, cut_points="blocks").moments) == jacobian
    if not looped:
        assert [one.name for one in rs.feature_rank(net, x, cut_points=["blocks"]).layers] == ["blocks"]


def test_a_threshold_that_no_changed_neighbour_crosses(tmp_path: Path) -> None:
    """The largest entry of a pass doubles what lies above 0.5: other values beside the small sample do so too."""

    class Doubled(Placed):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.added(self.stem(x) * torch.where(x.abs().amax() > 0.5, 2.0, 1.0)))
            return out

    net, x = Doubled("own").eval(), torch.tensor([[4.0, 3.0], [0.3, 0.1]]).repeat(6, 1) * torch.rand(12, 1).add(0.6)
    alone = torch.cat([net(one[None]) for one in x]).detach()
    found = collect(net, x, tmp_path, cut_points=[], batch_size=2)
    np.testing.assert_allclose(found.logits.numpy(), alone.numpy(), rtol=1e-5, atol=1e-6)
    assert len(of_kind(found.facts, FactKind.CALLED_ALONE)) == 1
