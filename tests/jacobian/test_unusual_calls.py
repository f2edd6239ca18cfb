"""Models whose ``forward`` is written in unusual ways: how it names its arguments, what it returns, what it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs

RTOL = 1e-3  # far above the error of float32, also where a rank is deficient


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

    def run(self, x: Tensor, y: Tensor | float = 1.0) -> Tensor:
        return self.b(torch.relu(self.a(x)) * y)


class ByPlace(Base):
    def forward(self, x: Tensor, /) -> Tensor:
        return self.run(x)


class TwoByPlace(Base):
    def forward(self, x: Tensor, y: Tensor, /) -> Tensor:
        return self.run(x, y)


class ByNameAlone(Base):
    def forward(self, *, x: Tensor, y: float = 0.5) -> Tensor:
        return self.run(x, y)


class Needs(Base):
    def forward(self, x: Tensor, mask: Tensor, *, scale: float) -> Tensor:
        return self.run(x, mask * scale)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return kind().eval()


def rank_alone(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    leaf = x[None].double().requires_grad_()
    rows = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in call(leaf).flatten()])
    sigma = torch.linalg.svdvals(rows)
    return int((sigma >= RTOL * sigma[0]).sum())


def certified(profile: rs.JacobianProfile) -> list[int]:
    found = profile["output"].estimates(profile.tolerance)
    assert all(e.certified and e.lower == e.value == e.upper for e in found)
    return [e.value for e in found]


@pytest.mark.parametrize("given", [lambda x: x, lambda x: {"x": x}], ids=["tensor", "mapping"])
@pytest.mark.parametrize("kind", [ByPlace, ByNameAlone])
def test_an_argument_is_passed_as_forward_takes_it(kind: type[nn.Module], given: Callable[[Tensor], Any]) -> None:
    model, x = made(kind), torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    wide = copy.deepcopy(model).double()
    call = (lambda v: wide(v)) if kind is ByPlace else (lambda v: wide(x=v))
    assert certified(rs.jacobian_rank(model, given(x), cut_points=["output"], tolerance=RTOL, progress=False)) == [
        rank_alone(call, one) for one in x
    ]
    assert rs.feature_rank(model, given(x), cut_points=["output"]).layers[0].samples == 3


@pytest.mark.parametrize("wanted", ["x", "y"])
def test_two_arguments_without_names(wanted: str) -> None:
    """``y`` closes all units but two, so a call that takes one for the other has another rank."""
    model, x = made(TwoByPlace), torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([[1.0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    wide = copy.deepcopy(model).double()
    other = {"x": "y", "y": "x"}[wanted]
    profile = rs.jacobian_rank(
        model,
        {"x": x, "y": y},
        cut_points=["output"],
        tolerance=RTOL,
        differentiate=wanted,
        per_sample=other,
        progress=False,
    )
    expected = [
        rank_alone(lambda v, b=b: wide(v, b[None].double()), a)
        if wanted == "x"
        else rank_alone(lambda v, a=a: wide(a[None].double(), v), b)
        for a, b in zip(x, y, strict=True)
    ]
    assert certified(profile) == expected


@pytest.mark.parametrize("room", [rs.jacobian_rank, rs.feature_rank, rs.layers])
@pytest.mark.parametrize("given", [lambda x: x, lambda x: {"x": x}], ids=["tensor", "mapping"])
def test_arguments_that_are_missing_are_named(room: Callable[..., Any], given: Callable[[Tensor], Any]) -> None:
    words = r"^forward of Needs also needs 'mask' and 'scale'; give a mapping of all its arguments "
    with pytest.raises(rs.ModelError, match=words + r'\(\{"x": ..., "mask": ..., "scale": ...\}\)$'):
        room(made(Needs), given(torch.zeros(3, 6)))


@pytest.mark.parametrize("room", [rs.jacobian_rank, rs.feature_rank, rs.layers])
@pytest.mark.parametrize("model", [nn.ModuleList([nn.Linear(6, 6)]), nn.ModuleDict(), Base()])
def test_a_module_without_forward(room: Callable[..., Any], model: nn.Module) -> None:
    with pytest.raises(rs.ModelError, match=f"^{type(model).__name__} has no forward; give a module that has one"):
        room(model, torch.zeros(3, 6))


class Nested(Base):
    def __init__(self, *, beside: bool, layout: torch.layout) -> None:
        super().__init__()
        self.beside, self.layout = beside, layout

    def forward(self, x: Tensor) -> Any:
        nested = torch.nested.nested_tensor([self.run(one) for one in x], layout=self.layout)
        return (self.run(x), nested) if self.beside else nested


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_outputs_are_no_rows(layout: torch.layout) -> None:
    torch.manual_seed(1)
    model, x = Nested(beside=True, layout=layout).eval(), torch.randn(2, 6)
    wide = copy.deepcopy(model).double()
    profile = rs.jacobian_rank(model, x, cut_points=["output"], tolerance=RTOL, progress=False)
    assert certified(profile) == [rank_alone(wide.run, one) for one in x]
    assert "'output' also returns 1 (nested tensor), not measured as part of the cut point." in profile.notes
    with pytest.raises(rs.ModelError, match=r"it returned a nested tensor$"):
        rs.jacobian_rank(Nested(beside=False, layout=layout), x, progress=False)


class Ensemble(nn.Module):
    """As the tutorial of torch.func makes it: stacked weights, and the form of one member on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        members = [nn.Linear(6, 4) for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(members)
        self.stacked = nn.ParameterDict({k: nn.Parameter(v) for k, v in stacked.items()})
        self.form = [copy.deepcopy(members[0]).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.form[0], weights, (x,))

        return torch.relu(torch.vmap(one, (0, None))(dict(self.stacked), x)).mean(0)


def test_an_ensemble_of_torch_func() -> None:
    torch.manual_seed(1)
    model, x = Ensemble().eval(), torch.randn(3, 6)
    wide = copy.deepcopy(model).double()
    assert certified(rs.jacobian_rank(model, x, cut_points=["output"], tolerance=RTOL, progress=False)) == [
        rank_alone(wide, one) for one in x
    ]
    assert model.form[0].weight.is_meta
