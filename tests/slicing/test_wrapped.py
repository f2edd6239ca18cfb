"""Wrappers that change where a network runs, and not what it computes. The oracle is the network without them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.slicing.wrapped import unwrapped


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with GPUs would move what it wraps there, and these networks are compared with plain ones."""
    monkeypatch.setattr(sys.modules[nn.DataParallel.__module__], "_get_available_device_type", lambda: None)


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


class Elsewhere(nn.DataParallel):
    """A wrapper of the user's own, which computes something else."""

    def forward(self, x: Any) -> Tensor:
        return 2 * self.module(x)


def _refuses(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a wrapper ran")


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_inside_the_network_calls_what_it_holds(
    wrap: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = nn.Sequential(nn.Linear(6, 6), net(), nn.Linear(3, 3)).eval()
    model = nn.Sequential(plain[0], wrap(plain[1]), plain[2]).eval()
    monkeypatch.setattr(nn.DataParallel, "forward", _refuses)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    expected = torch.autograd.functional.jacobian(plain.double(), X[0].double())
    plain.float()
    found = rs.jacobian_rank(model, X, cut_points=["2"], progress=False)
    spectrum = found.layers[0].spectra[0]
    assert spectrum is not None
    # float32 products of this depth keep some six digits
    torch.testing.assert_close(
        torch.tensor(spectrum.singular_values), torch.linalg.svdvals(expected), rtol=1e-4, atol=1e-6
    )
    for record in (found, rs.feature_rank(model, X, cut_points="all"), rs.local_feature_rank(model, X[:1], samples=9)):
        (fact,) = of_kind(record.facts, FactKind.PASSED_THROUGH)
        assert fact["inside"][0] == "1"
    collected = rs.collect(model, (X, LABELS), out=tmp_path, head="2", progress=False)
    assert of_kind(collected.facts, FactKind.PASSED_THROUGH)
    for name, module in model.named_modules():
        assert vars(module).get("forward") is before[name].get("forward")


def test_nothing_compiled_runs_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def backend(graph: Any, _: Any) -> Any:
        runs.append(graph)
        return graph

    in_place, wrapped = net(), net()
    in_place.compile(backend=backend)
    compiled_call = in_place._compiled_call_impl
    for inner in (in_place, torch.compile(wrapped, backend=backend)):
        model = nn.Sequential(nn.Linear(6, 6), inner).eval()
        assert rs.jacobian_rank(model, X, cut_points="all", progress=False).function_rank[-1] <= 3
    assert in_place._compiled_call_impl is compiled_call
    assert not runs


def test_hooks_and_a_forward_of_its_own_stay_in_force_inside() -> None:
    x = torch.randn(1, 6)
    inner = net()
    hooked = nn.DataParallel(inner)
    hooked.register_forward_hook(lambda *args: args[2] * 0)
    zero = rs.jacobian_rank(nn.Sequential(hooked), x, cut_points=["output"], progress=False)
    assert zero.function_rank == (0,)
    own, plain = (
        rs.jacobian_rank(nn.Sequential(w), x, cut_points=["output"], progress=False) for w in (Elsewhere(inner), inner)
    )
    sigma = [p.layers[0].spectra[0].singular_values for p in (own, plain)]  # type: ignore[union-attr]
    torch.testing.assert_close(torch.tensor(sigma[0]), 2 * torch.tensor(sigma[1]), rtol=1e-5, atol=1e-7)
