"""Every kind of network, every method, against the float64 Jacobian by one reverse pass per row."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import networks
import numpy as np
import pytest
import torch
from networks import CASES, oracle
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.errors import MeasurementError
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.jacobian import JacobianProfile
from rankscope.linear.linearise import Linearised
from rankscope.linear.methods import METHODS, failed
from rankscope.linear.runner import Runner
from rankscope.slicing import call_model, measuring, read_samples, select, trace

DTYPES = {"float32": 2e-5, "float64": 1e-9}  # relative to σ₁


def sigma(matrix: Tensor) -> np.ndarray:
    return torch.linalg.svdvals(matrix).numpy()


# a mask of 2×6 beside two samples could belong to all of them: the test says that each has a row
MEANT = {"masked": ("mask",)}


def oracles(
    model: nn.Module, inputs: Any, cut_points: Any = "all", per_sample: tuple[str, ...] = ()
) -> list[dict[str, Tensor]]:
    """For every sample: the Jacobian of every cut point that depends on the input."""
    samples = list(read_samples(model, inputs, per_sample=per_sample))
    calls = select(model, trace(model, samples[0]), cut_points)
    return [
        {c.name: oracle(model, s.x, *c.key, **s.extra, _keyword=s.keyword) for c in calls if c.depends} for s in samples
    ]


@cache
def case_oracles(name: str) -> list[dict[str, Tensor]]:
    case = CASES[name]
    return oracles(case.model(), case.sample(2), per_sample=MEANT.get(name, ()))


def compare(profile: JacobianProfile, expected: list[dict[str, Tensor]], tolerance: float) -> None:
    assert [x.name for x in profile.layers] == list(expected[0])
    for layer in profile.layers:
        for found, jacobians in zip(layer.spectra, expected, strict=True):
            exact = sigma(jacobians[layer.name])
            assert found is not None
            assert found.shape == tuple(jacobians[layer.name].shape)
            # the Gram matrix squares: below 1e-7 of σ₁ its values are rounding
            np.testing.assert_allclose(
                found.singular_values, exact, rtol=0, atol=max(tolerance, 3e-8) * exact.max(initial=1e-30)
            )
            estimate = found.rank("paper")
            true = rs.Spectrum.of(jacobians[layer.name]).rank("paper").value
            assert estimate.lower <= true <= estimate.upper
            assert estimate.certified


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_profile(name: str, dtype: str) -> None:
    case = CASES[name]
    model, inputs = case.model(), case.sample(2)
    before = copy.deepcopy(inputs)
    expected = case_oracles(name)
    profile = rs.jacobian_rank(
        model, inputs, cut_points="all", columns="all", dtype=dtype, progress=False, per_sample=MEANT.get(name, ())
    )
    compare(profile, expected, DTYPES[dtype])
    if dtype == "float32":  # the kernels without a formula differ from precision to precision
        assert case.method in f"{profile.method.kind.value} {profile.method['name']}", profile.failed_methods
    assert profile.adjoint_error is not None
    assert profile.adjoint_error < 1e-4
    for a, b in zip(_tensors(inputs), _tensors(before), strict=True):
        assert torch.equal(a, b), "the caller's input was changed"


def _tensors(inputs: Any) -> list[Tensor]:
    return list(inputs.values()) if isinstance(inputs, dict) else [inputs]


WORKS = {
    "vmap(jvp)": {"lstm", "double backward", "reverse rows"},
    "vmap(jvp), plain kernels": {"double backward", "reverse rows"},
    "jvp, one tangent at a time": {"lstm", "double backward", "reverse rows"},
    "jvp, one tangent at a time, plain kernels": {"double backward", "reverse rows"},
    "double backward": {"reverse rows", "lstm"},
    "double backward, plain kernels": {"reverse rows"},
    "reverse mode by rows": set(),
    "linearised": {"lstm", "double backward", "reverse rows"},
}


@pytest.mark.parametrize("method", WORKS)
@pytest.mark.parametrize("name", CASES)
def test_every_method_gives_the_same_columns(name: str, method: str) -> None:
    if name in WORKS[method]:
        pytest.skip("no formula")
    case = CASES[name]
    model = case.model().double()
    read = read_samples(model, case.sample(2), per_sample=MEANT.get(name, ()))
    sample = next(iter(read)).to(torch.device("cpu"), torch.float64)
    calls = [c for c in trace(model, sample).calls if c.depends]
    runner = Runner(model, [c.key for c in calls], torch.device("cpu"), torch.float64)
    directions = torch.randn(3, *sample.x.shape[1:], dtype=torch.float64)
    with measuring(model, torch.device("cpu")), runner.hooked():
        push = Linearised(runner) if method == "linearised" else next(m for m in METHODS if m.name == method)
        found = push(runner, sample, directions)
        rows = [torch.tensor([0]) if i % 2 else torch.zeros(0, dtype=torch.long) for i in range(len(calls))]
        part = push(runner, sample, directions, rows)
    for i, (c, columns) in enumerate(zip(calls, found, strict=True)):
        expected = directions.flatten(1) @ case_oracles(name)[0][c.name].T
        torch.testing.assert_close(columns, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()) + 1e-14)
        torch.testing.assert_close(part[i], columns[:, :1] if i % 2 else columns[:, :0], rtol=1e-12, atol=1e-14)


def test_fallbacks_are_recorded() -> None:
    case = CASES["reverse rows"]
    profile = rs.jacobian_rank(case.model(), case.sample(), cut_points="all", progress=False)
    assert profile.method["name"] == "reverse mode by rows"
    assert [f["name"] for f in profile.failed_methods][: len(METHODS) - 2] == [m.name for m in METHODS[:-2]]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("0 INTERNAL ASSERT FAILED at x.cpp, please report a bug"), "torch raised a RuntimeError inside"),
        (NotImplementedError("no forward formula\nmore"), "no forward formula"),
        (MeasurementError("forward mode gave no tangent"), "forward mode gave no tangent"),
        (ValueError(), "ValueError"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_why_a_way_failed_is_decided_by_type(error: Exception, reason: str) -> None:
    assert failed("vmap(jvp)", error) == Fact(FactKind.WAY_FAILED, {"name": "vmap(jvp)", "reason": reason})


def test_reverse_rows_in_groups_and_at_a_zero_layer() -> None:
    class Zero(networks.Custom):
        def forward(self, x: Tensor) -> Tensor:
            return self.zero(self.last(self.function.apply(self.first(x))))

    torch.manual_seed(0)
    model = Zero(networks._CubeOnce)
    model.zero = nn.Linear(4, 3)
    nn.init.zeros_(model.zero.weight)
    x = torch.randn(1, 6)
    whole = rs.jacobian_rank(model.eval(), x, cut_points="all", progress=False)
    assert whole.method["name"] == "reverse mode by rows"
    assert whole.function_rank == (6, 4, 0)
    split = rs.jacobian_rank(model, x, cut_points="all", progress=False, chunk_size=2, memory_budget=100)
    for a, b in zip(whole.layers, split.layers, strict=True):
        np.testing.assert_allclose(a.spectra[0].singular_values, b.spectra[0].singular_values, atol=1e-7)


def test_a_wrong_forward_formula_is_named() -> None:
    profile = rs.jacobian_rank(networks.wrong_derivative(), torch.randn(1, 6), cut_points="all", progress=False)
    assert profile.adjoint_error > 0.1
    (fact,) = of_kind(profile.facts, FactKind.REVERSE_DISAGREES)
    assert (fact["where"], fact["error"], fact.caution) == ("last", profile.adjoint_error, True)


def test_sample_that_the_model_is_called_with() -> None:
    model = CASES["language"].model()
    (sample,) = read_samples(model, CASES["language"].sample(1))
    assert sample.keyword == "inputs_embeds"
    assert set(sample.extra) == {"attention_mask", "use_cache"}
    out = call_model(model, sample, sample.x)["logits"]
    ids = CASES["language"].sample(1)
    torch.testing.assert_close(out, model(ids["input_ids"], None, ids["attention_mask"], use_cache=False)["logits"])
