"""A Python bool in a record is a switch in every room, and a number is a row: beside calls of one sample each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.slicing.batches import Batches


class Switched(nn.Module):
    """Two of six features where ``flag`` is the switch itself, four where it is a tensor of any value."""

    def __init__(self) -> None:
        super().__init__()
        self.end, self.head = nn.Identity(), nn.Linear(6, 3)

    def forward(self, x: Tensor, flag: Any = False, scale: Any = 1.0) -> Tensor:
        kept = 2 if flag is True else 6 if flag is False else 4
        scale = scale[:, None] if isinstance(scale, Tensor) and scale.ndim else scale
        out: Tensor = self.head(self.end(x * (torch.arange(6) < kept) * scale))
        return out


class Placed(Switched):
    def forward(self, x: Tensor, flag: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, flag)


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def inputs(count: int = 12) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


def records(values: list[Any], name: str = "flag") -> Items:
    return Items(
        [{"x": x, name: v, "label": k % 2 == 0} for k, (x, v) in enumerate(zip(inputs(), values, strict=True))]
    )


def jacobian(net: nn.Module, data: Any, _out: Path) -> int:
    found = rs.jacobian_rank(net, data, cut_points=["end"], progress=False)
    return max(e.value for e in found["end"].estimates(found.tolerance))


def features(net: nn.Module, data: Any, _out: Path) -> int:
    return rs.feature_rank(net, data, cut_points=["end"])["end"].pca_dimension


def collected(net: nn.Module, data: Any, out: Path) -> int:
    found = rs.collect(net, data, cut_points=["end"], out=out, head="head", progress=False)
    return rs.feature_rank(found)["end"].pca_dimension


ROOMS: list[Callable[[nn.Module, Any, Path], int]] = [jacobian, features, collected]


@pytest.mark.parametrize("room", ROOMS)
def test_a_switch_stays_one_and_a_loader_makes_a_tensor_of_it(room: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, data = Switched().eval(), records([True] * 12)
    assert room(net, data, tmp_path / "a") == 2
    assert room(net, DataLoader(data, batch_size=4), tmp_path / "b") == 4
    assert room(net, records([torch.tensor(True)] * 12), tmp_path / "c") == 4
    if room is not jacobian:  # a pair of what forward needs has a label behind it
        pairs = Items([(x, True, k % 3) for k, x in enumerate(inputs())])
        assert room(Placed().eval(), pairs, tmp_path / "d") == 2


@pytest.mark.parametrize("name", ["flag", "scale"])
def test_each_sample_has_its_own(name: str, tmp_path: Path) -> None:
    """Numbers are as exact as the model: 0.1 in float64 is not that of float32."""
    torch.manual_seed(0)
    net = Switched().eval().double()
    values = [k % 3 == 0 for k in range(12)] if name == "flag" else [0.1 * (k + 1) for k in range(12)]
    alone = torch.cat([net(x[None].double(), **{name: v}) for x, v in zip(inputs(), values, strict=True)])
    data = records(values, name)
    found = rs.collect(net, data, out=tmp_path, cut_points=[], head="head", progress=False)
    np.testing.assert_allclose(found.logits.numpy(), alone.detach().numpy(), rtol=1e-12)
    np.testing.assert_array_equal(found.labels.numpy(), [k % 2 == 0 for k in range(12)])
    made = torch.cat([net(call.x.double(), **call.shared, **call.per_sample) for call in Batches(net, data, 4)])
    np.testing.assert_allclose(made.detach().numpy(), alone.detach().numpy(), rtol=1e-12)


def test_samples_with_one_switch_share_a_pass_and_it_is_their_own() -> None:
    data, net = records([True] * 3 + [False] * 9), Switched().eval()
    assert [len(call) for call in Batches(net, data, 4)] == [3, 4, 4, 1]
    for kind, made in (
        (FactKind.COUNTED, rs.feature_rank(net, data, cut_points=["end"])),
        (FactKind.DIFFERENTIATED, rs.jacobian_rank(net, data, cut_points=["end"], progress=False)),
    ):
        (fact,) = of_kind(made.facts, kind)
        assert (fact["per_sample"], fact["shared"]) == (("flag",), ())


def test_switches_within_a_container_stay_too(tmp_path: Path) -> None:
    class Nested(Switched):
        def forward(self, x: Tensor, flag: Any = None, scale: Any = 1.0) -> Tensor:
            return super().forward(x + flag["by"], flag["on"], scale)

    net = Nested().eval()
    values = [{"by": torch.full((6,), 0.1 * k), "on": k < 4} for k in range(12)]
    alone = torch.cat(
        [net(x[None], {"by": v["by"][None], "on": v["on"]}) for x, v in zip(inputs(), values, strict=True)]
    )
    found = rs.collect(net, records(values), out=tmp_path, cut_points=[], head="head", progress=False)
    np.testing.assert_allclose(found.logits.numpy(), alone.detach().numpy(), atol=1e-6)
