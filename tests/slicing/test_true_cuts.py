"""True cuts against a numeric oracle: hold a cut point's tangent at zero and look at the output's."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from networks import CASES, find_tensors
from torch import Tensor, nn
from torch.autograd import forward_ad

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.slicing import Sample, call_model, measuring, read_samples, trace


def passes_everything(
    model: nn.Module, sample: Sample, name: str, index: int, parts: tuple[str, ...] | None
) -> tuple[bool, bool]:
    """(whether all information passes through this call, whether it depends on the input at all)."""
    count = 0
    depends = False

    def cut(tensor: Tensor) -> Tensor:
        nonlocal depends
        value, tangent = forward_ad.unpack_dual(tensor)
        depends = depends or (tangent is not None and bool(tangent.any()))
        if tangent is not None and index >= 0 and getattr(model.get_submodule(name), "inplace", False):
            tangent.zero_()  # whoever holds the input holds the output
            return tensor
        return value.clone()  # without a tangent

    def replace(output: Any, path: str = "") -> Any:
        if isinstance(output, Tensor):
            return cut(output) if parts is None or path in parts else output
        if output is None:
            return None
        keys = list(output) if isinstance(output, dict) else range(len(output))
        made = {k: replace(output[k], f"{path}.{k}" if path else str(k)) for k in keys}
        return made if isinstance(output, dict) else tuple(made.values())

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        return replace(output) if count == index + 1 else None

    handle = (model.get_submodule(name) if index >= 0 else nn.Identity()).register_forward_hook(hook)
    try:
        with measuring(model, torch.device("cpu")), forward_ad.dual_level():
            x = forward_ad.make_dual(sample.x.clone(), torch.randn_like(sample.x))
            made = call_model(model, sample, x)
            made = replace(made) if index < 0 else made
            out = [forward_ad.unpack_dual(t).tangent for t in find_tensors(made)]
    finally:
        handle.remove()
    return all(t is None or not bool(t.abs().max() > 0) for t in out), depends


NUMERIC = [n for n in CASES if n not in ("lstm", "double backward", "reverse rows")]


@pytest.mark.parametrize("name", NUMERIC)
def test_true_cuts(name: str) -> None:
    case = CASES[name]
    model = case.model().double()
    sample = next(iter(read_samples(model, case.sample(1)))).to(torch.device("cpu"), torch.float64)
    found = trace(model, sample)
    assert found.structured
    for c in found.nameable:
        if c.of_network and c.part:  # what was returned may have been used before, as a tensor of its own
            continue
        expected, depends = passes_everything(model, sample, *c.key)
        assert c.true_cut == expected, c
        assert c.depends == depends, c


EXPECTED = {
    "residual": ["stem.0", "stem.1", "stem.2", "stem", "pool", "blocks.0.relu#2", "blocks.0"],
    "shared": ["layer#1", "layer#2", "layer#3", "last"],
    "halves": ["first", "split", "last"],  # both halves together
    "branches": ["output.1", "output"],  # it also returns its input
    "dense": ["c", "pool"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_by_name(name: str) -> None:
    table = rs.layers(CASES[name].model(), CASES[name].sample(1))
    cuts = [c.name for c in table if c.true_cut]
    assert cuts[: len(EXPECTED[name])] == EXPECTED[name]
    if name != "residual":
        assert cuts == EXPECTED[name]


def test_in_place_on_part_of_a_tensor() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            self.act(y[:, :3])
            return self.b(y)

    model = Part().double()
    sample = Sample(torch.randn(1, 6, dtype=torch.float64), "x")
    assert {c.name: c.true_cut for c in trace(model, sample).calls} == {"a": True, "act": False, "b": True}


def test_a_module_that_does_not_see_the_input() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.b(torch.ones(1, 4))

    table = rs.layers(Conditioned())
    assert {c.name: (c.true_cut, c.depends) for c in table} == {
        "a": (True, True),
        "b": (False, False),
        "output": (True, True),
    }
    assert "independent of the input" in str(table)
    profile = rs.jacobian_rank(Conditioned(), torch.randn(1, 4), cut_points="all", progress=False)
    assert profile.unmeasured == {"b": "its output does not depend on the input"}
    with pytest.raises(rs.MeasurementError, match="no requested cut point depends on the input: b"):
        rs.jacobian_rank(Conditioned(), torch.randn(1, 4), cut_points=["b"], progress=False)


def test_gradients_turned_off_inside_hide_no_true_cut() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    assert [(c.name, c.true_cut, c.depends) for c in rs.layers(Detached())] == [("a", True, True)]


def test_without_a_graph_nothing_is_called_a_true_cut() -> None:
    class Writes(nn.Module):
        """Cannot run with gradients on: torch refuses ``out=`` there."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            torch.mul(self.a.weight, 1.0, out=torch.empty(4, 4))
            return self.a(x)

    table = rs.layers(Writes())
    assert [(c.name, c.true_cut, c.depends) for c in table] == [("a", False, True)]
    profile = rs.jacobian_rank(Writes(), torch.randn(1, 4), cut_points="all", progress=False)
    assert profile.function_rank == (4,)
    assert of_kind(profile.facts, FactKind.NO_GRAPH)


def test_a_failing_model_says_its_own_words() -> None:
    with pytest.raises(rs.ModelError, match=r"Linear failed on an input of shape \(1, 3\): mat1 and mat2"):
        rs.layers(nn.Linear(4, 4), torch.zeros(1, 3))

    class Integers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    with pytest.raises(rs.ModelError, match="returned no floating-point tensor"):
        rs.layers(Integers(), torch.zeros(1, 3))
    assert networks.find_tensor((torch.ones(1),)).item() == 1
