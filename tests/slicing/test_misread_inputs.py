"""Inputs that are likely meant otherwise: every function refuses them with the same remedy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs

Room = Callable[[nn.Module, Any, Path], object]
ROOMS: dict[str, Room] = {
    "jacobian_rank": lambda model, x, _: rs.jacobian_rank(model, x, progress=False),
    "chain_exponents": lambda model, x, _: rs.chain_exponents(model, x, progress=False),
    "linear_map": lambda model, x, _: rs.linear_map(model, x),
    "layers": lambda model, x, _: rs.layers(model, x),
    "feature_rank": lambda model, x, _: rs.feature_rank(model, x),
    "feature_rank at a name": lambda model, x, _: rs.feature_rank(model, x, cut_points=["last"]),
    "local_feature_rank": lambda model, x, _: rs.local_feature_rank(model, x, samples=4),
    "collect": lambda model, x, out: rs.collect(model, (x, None), out=out, progress=False),
    "collect at all": lambda model, x, out: rs.collect(model, (x, None), out=out, cut_points="all", progress=False),
}
every_room = pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)


class Images(nn.Module):
    """A classifier of 8×8 images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(channels, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.last(self.conv(x).flatten(1))


class Lists(Images):
    def forward(self, images: list[Tensor]) -> Tensor:  # type: ignore[override]
        return self.last(self.conv(torch.stack(list(images))).flatten(1))


@every_room
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_without_its_batch_dimension_names_the_remedy(room: Room, channels: int, tmp_path: Path) -> None:
    with pytest.raises(rs.RankscopeError, match=r"x\[None\] if it is one"):
        room(Images(channels).eval(), torch.randn(channels, 8, 8), tmp_path)


def test_a_batch_of_images_that_fails_for_another_reason_of_a_data_set_says_nothing_of_it() -> None:
    data = torch.utils.data.StackDataset(torch.randn(4, 2, 8, 8), torch.arange(4))
    for measured in (rs.feature_rank, rs.jacobian_rank):
        with pytest.raises(rs.RankscopeError, match="channels") as raised:
            measured(Images(3).eval(), data)
        assert "x[None]" not in str(raised.value)


@every_room
@pytest.mark.parametrize("name", ["foo", "photo"])
def test_a_name_that_forward_does_not_take_is_refused_with_those_that_it_does(
    room: Room, name: str, tmp_path: Path
) -> None:
    expected = rf"names '{name}', which forward does not take; name it as forward does \(x, mask\)"
    with pytest.raises(rs.UsageError, match=expected):
        room(Images(3).eval(), {name: torch.randn(1, 3, 8, 8)}, tmp_path)


def test_a_usual_name_is_the_one_input() -> None:
    x = torch.randn(2, 4)
    for name in ("x", "image", "inputs"):
        assert rs.jacobian_rank(nn.Linear(4, 3), {name: x}, progress=False).function_rank == (3,)


def test_records_of_a_data_set_name_their_input_as_they_like() -> None:
    records = [{"foo": torch.randn(3, 8, 8), "label": i} for i in range(3)]
    assert len(rs.jacobian_rank(Images(3).eval(), records, progress=False).images) == 3


@every_room
def test_a_list_of_images_names_the_tensor_to_give(room: Room, tmp_path: Path) -> None:
    model = Lists(3).eval()
    with pytest.raises(rs.DataError, match=r"'images' is a list of tensors; give one tensor .*torch\.stack\(tensors\)"):
        room(model, {"images": [torch.randn(3, 8, 8)]}, tmp_path)
    assert rs.jacobian_rank(model, {"images": torch.randn(1, 3, 8, 8)}, cut_points=["last"], progress=False)


@pytest.mark.parametrize("inputs", [torch.randn(2, 3, 8, 8), {"x": torch.randn(2, 3, 8, 8)}])
@pytest.mark.parametrize("option", ["shared", "per_sample"])
def test_an_option_that_names_what_forward_lacks_says_so(inputs: Any, option: str) -> None:
    given: dict[str, Any] = {option: ("tt",)}
    for measured in (rs.jacobian_rank, rs.feature_rank, rs.layers):
        with pytest.raises(rs.UsageError, match=f"{option} names 'tt', which forward does not take; it takes x, mask"):
            measured(Images(3).eval(), inputs, **given)


@pytest.mark.parametrize("given", [Images, "resnet18", {"last.weight": torch.zeros(5, 144)}])
def test_layers_of_what_is_no_module(given: Any) -> None:
    with pytest.raises(rs.UsageError, match=r"model is .*(give|build the network)"):
        rs.layers(given)


class Narrow(nn.Module):
    """Constants of float32, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) @ torch.ones(4, 4, dtype=torch.float32)


class Converts(nn.Module):
    """It makes a layer of its own float32, whatever its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.second.float()
        return self.second(self.first(x))


class Halves(Converts):
    """The whole of it, by way of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return self.half().float().second(self.first(x))


@pytest.mark.parametrize("kind", [Narrow, Converts, Halves])
@pytest.mark.parametrize(
    "measured",
    [
        lambda model, x: rs.jacobian_rank(model, x, dtype="float64", progress=False),
        lambda model, x: rs.linear_map(model, x[:1], dtype="float64"),
        lambda model, x: rs.chain_exponents(model, x, dtype="float64", progress=False),
        lambda model, x: rs.probe(model, inputs=x, device="cpu"),
    ],
)
def test_a_model_that_is_float32_inside_names_the_dtype_that_it_runs_in(measured: Any, kind: Any) -> None:
    """Without rankscope it fails on a float64 input too."""
    x, model = torch.randn(2, 4), kind().eval()
    with pytest.raises(RuntimeError, match="dtype"):
        copy.deepcopy(model).double()(x.double())
    named = (
        rf'{kind.__name__} does not run in float64: .*; give dtype="float32", or (keep conversions to float32|leave)'
    )
    with pytest.raises(rs.ModelError, match=named):
        measured(model, x)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert rs.jacobian_rank(model, x, dtype="float32", progress=False).function_rank[0] <= 4
