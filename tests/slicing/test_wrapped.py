"""Wrappers that change where a network runs, and not what it computes. The oracle is the network without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.slicing.wrapped import unwrapped


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "compiled DataParallel": lambda model: compiled(nn.DataParallel(model)),
}
X = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(7) % 3


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_network_inside_is_measured_and_certified(wrap: Any) -> None:
    plain, wrapped = (rs.jacobian_rank(m, X, progress=False) for m in (net(), wrap(net())))
    assert wrapped.function_rank == plain.function_rank
    assert [layer.name for layer in wrapped.layers] == ["0", "1", "2"]
    assert all(s is not None and s.rank().certified for layer in wrapped.layers for s in layer.spectra)
    assert len(of_kind(wrapped.facts, FactKind.UNWRAPPED)) == 1
    assert not of_kind(plain.facts, FactKind.UNWRAPPED)


@pytest.mark.parametrize(("wrap", "name"), [(nn.DataParallel, "module.2"), (compiled, "_orig_mod.2")])
def test_names_of_the_wrapped_model_are_taken_too(wrap: Any, name: str) -> None:
    model = wrap(net())
    assert rs.jacobian_rank(model, X, cut_points=[name], progress=False).layers[0].name == "2"
    assert (
        rs.jacobian_rank(model, X[:1], cut_points=name, columns="all", method="lanczos", progress=False).layers[0].name
        == "2"
    )
    assert [layer.name for layer in rs.feature_rank(model, X, cut_points=name)] == ["2"]
    assert [layer.name for layer in rs.local_feature_rank(model, X[:1], cut_points=name, samples=9)] == ["2"]


def test_the_other_functions(tmp_path: Path) -> None:
    model = nn.DataParallel(net())
    assert [call.name for call in rs.layers(model)] == ["0", "1", "2"]
    found = rs.collect(model, (X, LABELS), out=tmp_path, head="module.2", progress=False)
    assert torch.equal(found.logits, net()(X))
    assert of_kind(found.facts, FactKind.UNWRAPPED)
    square = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    chain = rs.chain_exponents(nn.DataParallel(square), torch.randn(1, 4), top=2, progress=False)
    assert of_kind(chain.facts, FactKind.UNWRAPPED)


def test_the_wrapper_keeps_its_mode() -> None:
    model = nn.DataParallel(net()).train()
    rs.jacobian_rank(model, X[:1], progress=False)
    assert all(module.training for module in model.modules())


class Doubled(nn.DataParallel):
    def forward(self, x: Tensor) -> Any:
        return 2 * self.module(x)


def test_a_wrapper_that_computes_something_stays() -> None:
    hooked = nn.DataParallel(net())
    hooked.register_forward_hook(lambda module, args, out: 2 * out)
    for model in (Doubled(net()), hooked):
        found, names, facts = unwrapped(model, ["module.2"])
        assert (found, names, facts) == (model, ["module.2"], [])


def test_a_name_of_the_network_itself_stays() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Sequential(nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Any:
            return self.module(x)

    assert unwrapped(nn.DataParallel(Named()), ("module.0", "module.module.0"))[1] == ["module.0", "module.module.0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Linear, "is the class Linear; give an instance of it"),
        (torch.relu, "give a torch.nn.Module whose forward calls it"),
        (lambda x: x, "is a function; give a torch.nn.Module whose forward calls it"),
        ("resnet18", r"'resnet18'; give a torch.nn.Module, such as .*load_model\('timm:resnet18'\)"),
        (None, "is None; give a torch.nn.Module"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda m, out: rs.layers(m, X),
        lambda m, out: rs.jacobian_rank(m, X),
        lambda m, out: rs.chain_exponents(m, X),
        lambda m, out: rs.feature_rank(m, X),
        lambda m, out: rs.local_feature_rank(m, X[:1]),
        lambda m, out: rs.collect(m, (X, LABELS), out=out),
        lambda m, out: rs.loading.calibrate_batchnorm(m, X),
    ],
    ids=["layers", "jacobian", "chain", "features", "local", "collect", "calibrate"],
)
def test_what_is_no_model_is_refused_with_the_remedy(call: Any, given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(rs.UsageError, match=message):
        call(given, tmp_path)


@pytest.mark.parametrize("call", [rs.layers, rs.jacobian_rank, rs.chain_exponents, rs.local_feature_rank])
def test_weights_alone_are_no_model(call: Any) -> None:
    with pytest.raises(rs.UsageError, match="call load_state_dict on it, and give the network"):
        call(net().state_dict(), X[:1])
