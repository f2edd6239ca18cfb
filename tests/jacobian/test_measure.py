"""What must not change a result, what the certificate promises, and what bad input is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import pytest
import torch
from networks import CASES, oracle, settled
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.checks import budget_of
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.jacobian import JacobianProfile
from rankscope.jacobian import measure as measuring_module
from rankscope.jacobian.batch import BatchMeasurer
from rankscope.linear.budget import chunk_for

CPU = torch.device("cpu")


def measure(model: nn.Module, inputs: Any, **options: Any) -> JacobianProfile:
    return rs.jacobian_rank(model, inputs, **{"cut_points": "all", "progress": False, **options})


def values(profile: JacobianProfile) -> list[np.ndarray]:
    return [s.singular_values for layer in profile.layers for s in layer.spectra]


def same(a: JacobianProfile, b: JacobianProfile, relative: float = 0.0) -> None:
    assert [x.name for x in a.layers] == [x.name for x in b.layers]
    for left, right in zip(values(a), values(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=relative * max(left.max(initial=0), 1e-30))


# ---- invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "vit", "reverse rows", "double backward"])
@pytest.mark.parametrize("columns", ["all", rs.Sketch(5, seed=3)])
def test_chunks_and_budgets_change_nothing(name: str, columns: Any) -> None:
    case = CASES[name]
    whole = measure(case.model(), case.sample(2), columns=columns)
    for options in ({"chunk_size": 7}, {"chunk_size": 40, "memory_budget": 60_000}):
        same(whole, measure(case.model(), case.sample(2), columns=columns, **options), 3e-7)


def test_a_small_budget_splits_rows_into_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankscope.jacobian.sweep import Sweep

    groups: list[int] = []
    plain = Sweep._groups

    def counted(self: Sweep, support: list[Tensor]) -> Any:
        found = plain(self, support)
        groups.append(len(found))
        assert sum(stop - start for g in found for _, start, stop in g) == sum(len(s) for s in support)
        for g in found:
            assert sum(stop - start for _, start, stop in g) * self.count * 4 <= max(self.budget, self.count * 4)
        return found

    monkeypatch.setattr(Sweep, "_groups", counted)
    case = CASES["residual"]
    whole = measure(case.model(), case.sample(), columns=rs.Patch(4), chunk_size=7)
    split = measure(case.model(), case.sample(), columns=rs.Patch(4), chunk_size=7, memory_budget=4000)
    assert groups[0] == 1
    assert groups[1] > 5
    same(whole, split, 3e-7)
    for a, b in zip(whole.layers, split.layers, strict=True):
        assert a.spectra[0].error_bound == pytest.approx(b.spectra[0].error_bound, rel=0.2, abs=1e-12)


def test_order_of_the_columns() -> None:
    case = CASES["residual"]
    a = measure(case.model(), case.sample(), columns=rs.Patch(coordinates=[40, 3, 17, 90]))
    b = measure(case.model(), case.sample(), columns=rs.Patch(coordinates=[90, 17, 3, 40]))
    same(a, b)


class _Columns:
    """Columns of the caller's own: coordinates in any order."""

    def __init__(self, order: list[int]) -> None:
        self.order = order

    def count(self, shape: Any) -> int:
        return len(self.order)

    def coordinates(self, shape: Any) -> None:
        return None

    def tangents(self, shape: Any, start: int, stop: int, device: Any, dtype: Any) -> Tensor:
        return torch.eye(int(np.prod(shape)), dtype=dtype)[self.order[start:stop]].view(-1, *shape)

    def describe(self) -> str:
        return "a list"


def test_permuted_coordinates() -> None:
    case = CASES["vit"]
    order = [5, 100, 3, 77, 64, 31]
    expected = measure(case.model(), case.sample(), columns=rs.Patch(coordinates=order))
    same(expected, measure(case.model(), case.sample(), columns=_Columns(order)), 3e-7)


def test_zero_rows() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 12)).eval()
    padded = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 20)).eval()
    with torch.no_grad():
        padded[0].load_state_dict(net[0].state_dict())
        padded[1].weight.zero_()
        padded[1].weight[::2][:10] = net[1].weight[:10]
        padded[1].weight[1:4:2] = net[1].weight[10:]
    x = torch.randn(1, 6)
    a, b = measure(net, x), measure(padded, x)
    assert b["1"].rows == 20
    np.testing.assert_allclose(a["1"].spectra[0].singular_values, b["1"].spectra[0].singular_values, atol=1e-7)


def test_the_same_twice_and_whatever_the_global_seed() -> None:
    case = CASES["vit"]
    a = measure(case.model(), case.sample(2), columns=rs.Sketch(9))
    torch.manual_seed(99)
    same(a, measure(case.model(), case.sample(2), columns=rs.Sketch(9)))


def test_an_orthogonal_last_layer_changes_no_spectrum() -> None:
    torch.manual_seed(0)
    net = CASES["mlp"].model()
    last = nn.Linear(3, 3, bias=False)
    nn.init.orthogonal_(last.weight)
    profile = measure(nn.Sequential(net, last).eval(), CASES["mlp"].sample(2))
    for before, after in zip(profile["0.4"].spectra, profile["1"].spectra, strict=True):
        np.testing.assert_allclose(before.singular_values, after.singular_values, rtol=1e-6)


# a mask of n×6 beside n samples could belong to all of them: the tests say that each has a row
MEANT: dict[str, dict[str, Any]] = {"masked": {"per_sample": ("mask",)}}


@pytest.mark.parametrize("name", CASES)
def test_several_images_as_one_by_one(name: str) -> None:
    case = CASES[name]
    inputs = case.sample(3)
    together = measure(case.model(), inputs, **MEANT.get(name, {}))
    for i in (0, 2):
        part = {k: v[i : i + 1] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[i : i + 1]
        alone = measure(case.model(), part)
        for a, b in zip(together.layers, alone.layers, strict=True):
            np.testing.assert_allclose(
                a.spectra[i].singular_values,
                b.spectra[0].singular_values,
                rtol=0,
                atol=1e-6 * max(b.spectra[0].sigma_max, 1e-30) + b.spectra[0].error_bound,
            )
            assert a.spectra[i].error_bound < 1e-3 * max(b.spectra[0].sigma_max, 1e-30)


SHARED = {"residual": 5, "mlp": 5, "cumulative": 1, "masked": 1, "language": 1}


@pytest.mark.parametrize("name", SHARED)
def test_how_many_images_share_a_sweep(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = BatchMeasurer._submit

    def counted(self: BatchMeasurer, sample: Any, *found: Any, **more: Any) -> Any:
        sizes.append(len(sample.x))
        return plain(self, sample, *found, **more)

    monkeypatch.setattr(BatchMeasurer, "_submit", counted)
    case = CASES[name]
    measure(case.model(), case.sample(5), **MEANT.get(name, {}))
    assert sizes == [SHARED[name]] * (5 // SHARED[name])
    sizes.clear()
    if SHARED[name] == 5:  # of unknown number
        measure(case.model(), torch.utils.data.DataLoader(case.sample(5), batch_size=2))
        assert sizes == [5]


def test_outputs_without_a_batch_dimension_are_measured_one_by_one() -> None:
    """A sum over everything would be one number for all images of a sweep."""

    class Energy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x**2).sum()

    profile = measure(nn.Sequential(nn.Linear(4, 3), Energy()).eval(), torch.randn(3, 4), cut_points="all")
    assert [layer.rows for layer in profile.layers] == [3, 1]
    assert profile.function_rank == (3, 1)


def test_sharing_never_asks_for_more_than_one_image_needs() -> None:
    net = nn.Sequential(nn.Linear(2000, 2000), nn.ReLU()).eval()
    one = rs.Patch(coordinates=[3])
    assert measure(net, torch.randn(40, 2000), columns=one, memory_budget=120_000_000).function_rank == (1, 1)


# ---- certificate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "vit", "convolutions", "lstm", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_bounds_the_error(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """‖J32 − J64‖₂ itself, both matrices at hand."""
    from rankscope.jacobian.sweep import Sweep

    seen: list[tuple[int, Tensor]] = []
    plain = Sweep._columns

    def kept(self: Sweep, rows: list[Tensor], cuts: list[int]) -> list[Tensor]:
        found = plain(self, rows, cuts)
        for k, r, matrix in zip(cuts, rows, found, strict=True):
            full = torch.zeros(self.sizes[k], self.count, dtype=torch.float64)
            full[r] = matrix.double().T
            seen.append((k, full))
        return found

    support = Sweep.support

    def sized(self: Sweep) -> Any:
        found = support(self)
        self.sizes = found[1]
        return found

    monkeypatch.setattr(Sweep, "_columns", kept)
    monkeypatch.setattr(Sweep, "support", sized)
    case = CASES[name]
    model, inputs = case.model(), case.sample()
    profile = measure(model, inputs, columns="all", dtype=dtype)
    from rankscope.slicing import read_samples, trace

    (sample,) = read_samples(model, inputs)
    calls = [c for c in trace(model, sample).calls if c.depends]
    assert len(seen) == len(calls)
    for k, found in seen:
        exact = oracle(model, sample.x, *calls[k].key, **sample.extra, _keyword=sample.keyword)
        error = float(torch.linalg.matrix_norm(found - exact, 2))
        bound = profile.layers[k].spectra[0].error_bound
        top = float(torch.linalg.matrix_norm(exact, 2))
        assert error <= bound + 1e-15 * top
        assert bound <= (1e-4 if dtype == torch.float32 else 1e-11) * top
    # and it is no empty promise: some layer's bound is at least the rounding of one operation
    rounding = torch.finfo(dtype).eps / 16
    if name != "masked":  # one linear layer: its weights are its Jacobian
        assert max(layer.spectra[0].error_bound / layer.spectra[0].sigma_max for layer in profile.layers) > rounding
    if dtype == torch.float32:
        assert profile.certificate == Fact(FactKind.PROBES, {"probes": 6, "failure": 1e-6})
    else:
        assert profile.certificate == Fact(FactKind.SCALED_PROBES, {"probes": 6})


def test_float32_and_float64_agree_within_the_bounds() -> None:
    for name, columns in (("residual", rs.Patch(3)), ("vit", rs.Patch(3)), ("mlp", "all"), ("normalisations", "all")):
        case = CASES[name]
        a, b = (measure(case.model(), case.sample(2), columns=columns, dtype=d) for d in ("float32", "float64"))
        for left, right in zip(a.layers, b.layers, strict=True):
            for p, q in zip(left.estimates(a.tolerance), right.estimates(b.tolerance), strict=True):
                assert p.lower <= q.value <= p.upper


def test_a_wrong_column_breaks_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in one column of one cut point shows in its bound, and in no other."""
    from rankscope.jacobian.sweep import Sweep

    plain = Sweep._columns

    def wrong(self: Sweep, rows: Any, cuts: Any) -> Any:
        found = plain(self, rows, cuts)
        found[1][3] *= 1.5
        return found

    monkeypatch.setattr(Sweep, "_columns", wrong)
    case = CASES["mlp"]
    profile = measure(case.model(), case.sample(), columns="all")
    bounds = [layer.spectra[0].error_bound / layer.spectra[0].sigma_max for layer in profile.layers]
    assert bounds[1] > 0.05
    assert max(bounds[:1] + bounds[2:]) < 1e-4


def test_without_a_certificate() -> None:
    profile = measure(CASES["mlp"].model(), CASES["mlp"].sample(), certify=False)
    (estimate,) = profile.layers[0].estimates(profile.tolerance)
    assert not estimate.certified
    assert (estimate.lower, estimate.upper) == (0, 7)
    assert profile.kinks == ()
    assert profile.certificate.kind is FactKind.NOT_CERTIFIED
    assert "not certified" in str(profile)


def test_a_model_without_float64() -> None:
    class Picky(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return super().forward(x)

    profile = measure(nn.Sequential(Picky(4, 3)).eval(), torch.randn(1, 4))
    assert profile.certificate.kind is FactKind.NOT_IN_FLOAT64
    (fact,) = of_kind(profile.facts, FactKind.NO_FLOAT64)
    assert fact["reason"] == "float32 only"
    assert profile.function_rank == (3,)

    class Casts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float().to(x.dtype)

    profile = measure(nn.Sequential(Casts(4, 3)).eval(), torch.randn(1, 4))
    assert profile.certificate.kind is FactKind.PROBES  # in float32, the cast changes nothing
    assert not of_kind(profile.facts, FactKind.CASTS_DOWN)


class InHalf(nn.Module):
    """A product of rank 3 whose rounding in ``dtype`` fills the rest; in itself the tangents agree to the last bit."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b, self.dtype = nn.Linear(6, 3), nn.Linear(3, 6), dtype

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.a(x).to(self.dtype), self.b.weight.to(self.dtype)).to(x.dtype)


class IntoHalf(nn.Module):
    """A cast that no argument of an operator asks for, so that it cannot be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = self.a(x)
        return torch.tensor([[0.0] * 3], dtype=torch.float16).copy_(made).to(x.dtype)


@pytest.mark.parametrize("work", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_bounds_cover_what_casts_inside_round_off(low: torch.dtype, work: torch.dtype) -> None:
    """Against the product of the weights in float64: every σ within its bound, every rank within its bounds."""
    torch.manual_seed(0)
    net = InHalf(low).to(work).eval()
    exact = torch.linalg.svdvals(net.b.weight.double() @ net.a.weight.double()).detach().numpy()
    profile = measure(net, torch.randn(2, 6, dtype=work), cut_points="output", dtype=work)
    assert of_kind(profile.facts, FactKind.CASTS_DOWN)[0]["to"] == str(low).removeprefix("torch.")
    disagree = of_kind(profile.facts, FactKind.REVERSE_DISAGREES)
    assert all(fact["casts"] == str(low).removeprefix("torch.") for fact in disagree)
    for spectrum in profile.layers[-1].spectra:
        assert spectrum is not None
        if disagree:
            assert not spectrum.rank("paper").certified
            continue
        assert np.abs(spectrum.singular_values[: len(exact)] - exact).max() <= spectrum.error_bound
        for tolerance in ("paper", "reference", 1e-2):
            found = spectrum.rank(tolerance)
            assert found.certified
            assert found.lower <= 3 <= found.upper


@pytest.mark.parametrize("work", [torch.float32, torch.float64], ids=str)
def test_casts_that_cannot_be_left_out_leave_nothing_certified(work: torch.dtype) -> None:
    profile = measure(IntoHalf().to(work).eval(), torch.randn(1, 6, dtype=work), dtype=work)
    assert profile.certificate.kind is FactKind.NOT_IN_FLOAT64
    assert of_kind(profile.facts, FactKind.NO_FLOAT64)[0]["reason"] == "it casts to float16 inside"
    assert not any(e.certified for layer in profile.layers for e in layer.estimates(profile.tolerance))


def test_float64_bounds_a_model_that_casts_down() -> None:
    """A product of rank 20 in bfloat16: rounding fills the rest, and float64 outside does not make it exact."""

    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.randn(32, 20), torch.randn(20, 32)

        def forward(self, x: Tensor) -> Tensor:
            return (x.bfloat16() @ self.a.bfloat16() @ self.b.bfloat16()).to(x.dtype)

    net = nn.Sequential(nn.Linear(32, 32), Low(), nn.Linear(32, 32)).double().eval()
    profile = measure(net, torch.randn(1, 32, dtype=torch.float64), dtype="float64")
    assert of_kind(profile.facts, FactKind.CASTS_DOWN)[0]["to"] == "bfloat16"
    (spectrum,) = profile["1"].spectra
    assert spectrum is not None
    low = net[1]
    exact = (low.a.double() @ low.b.double()).T @ net[0].weight  # without the casts, also those of its constants
    gap = np.abs(spectrum.singular_values - torch.linalg.svdvals(exact).detach().numpy())
    assert gap.max() <= spectrum.error_bound
    estimate = profile["1"].estimates(profile.tolerance)[0]
    assert estimate.lower <= 20 < estimate.value


def test_kinks_are_counted() -> None:
    """A pre-activation that is zero in float64 and rounding in float32."""

    class Rounds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1.0) - 1.0

    net = nn.Sequential(Rounds(), nn.ReLU(), nn.Linear(3, 2)).eval()
    exact = torch.tensor([[2.0**-26, 1.0, -1.0]])  # 1 + 2^-26 is 1 in float32
    profile = measure(net, torch.cat([exact, torch.ones(1, 3), exact]))
    assert profile.kinks == (1, 0, 1)
    assert "1 unit within rounding error of a kink (the most in one image)" in str(profile)


# ---- silent errors ---------------------------------------------------------------------------------------------------


class Escapes(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(6, 6), nn.Linear(6, 6), how

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.how(torch.tanh(self.first(x))))


ESCAPES = {
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "numpy": lambda t: torch.from_numpy(t.detach().numpy().copy()),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", ESCAPES)
def test_a_tensor_that_escapes_is_noticed(how: str, dtype: str) -> None:
    profile = measure(Escapes(ESCAPES[how]).eval(), torch.randn(1, 6), dtype=dtype)
    (fact,) = of_kind(profile.facts, FactKind.LEAVES_COMPUTATION)
    assert (fact["where"], fact.caution) == ("last", True)
    clean = measure(Escapes(lambda t: t).eval(), torch.randn(1, 6), dtype=dtype)
    assert clean.notes == ()


@pytest.mark.parametrize("name", [n for n in CASES if n != "language"])
def test_no_false_alarm(name: str) -> None:
    facts = measure(CASES[name].model(), CASES[name].sample()).facts
    taken = (FactKind.SEVERAL_TENSORS, FactKind.DIFFERENTIATED)  # says only what was taken, and how it was read
    assert [fact for fact in facts if fact.kind not in taken] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_rounding_of_a_great_offset_is_no_leak(dtype: str) -> None:
    """Outputs of 1e4 that move by 1e-15 of themselves in a small step: their difference is rounding alone."""
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).eval()
    with torch.no_grad():
        net[1].weight.mul_(1e-7)
        net[1].bias.fill_(1e4)
    assert measure(net, torch.randn(1, 5), dtype=dtype).notes == ()


class Pooled(nn.Module):
    """A flat region makes every maximum over it a tie and, without biases, every ReLU's input zero."""

    def __init__(self, how: Callable[[Tensor], Tensor] = lambda t: t, *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, bias=bias), nn.Conv2d(6, 6, 3, bias=bias)
        self.pool, self.last, self.how = nn.MaxPool2d(2), nn.Linear(150, 4), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.first(x)))
        return self.last((torch.relu(self.second(x)) + self.how(torch.tanh(x))[..., 1:-1, 1:-1]).flatten(1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{"background": "zero", "columns": rs.Patch(4)}, {"columns": rs.Sketch(4)}])
def test_ties_and_kinks_are_no_leak(options: dict[str, Any], bias: bool, dtype: str) -> None:
    x = torch.zeros(1, 1, 16, 16)
    x[..., 6:10, 6:10] = torch.randn(4, 4)
    assert measure(Pooled(bias=bias).eval(), x, dtype=dtype, **options).notes == ()


ROUNDS = {"rounding passed straight through": lambda t: t + (torch.round(4 * t) / 4 - t).detach()}


@pytest.mark.parametrize("how", {**ESCAPES, **ROUNDS})
def test_a_leak_among_ties_is_noticed(how: str) -> None:
    net = Pooled({**ESCAPES, **ROUNDS}[how]).eval()
    profile = measure(net, torch.randn(1, 1, 16, 16), background="zero", columns=rs.Patch(4))
    (fact,) = of_kind(profile.facts, FactKind.LEAVES_COMPUTATION)
    assert (fact["where"], fact.caution) == ("last", True)


def test_ties_cost_one_pass_of_forward_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankscope.linear import derivative

    calls = []
    original = derivative.against_the_function

    def counted(runner: Any, method: Any, *rest: Any, narrow: bool) -> Any:
        def push(*given: Any) -> Any:
            calls.append(len(given[-1]))
            return method(*given)

        return original(runner, push, *rest, narrow=narrow)  # type: ignore[arg-type]

    monkeypatch.setattr(derivative, "against_the_function", counted)
    options: dict[str, Any] = {"columns": rs.Patch(4)}
    measure(Pooled().eval(), torch.randn(3, 1, 16, 16), **options)
    assert calls == []
    measure(Pooled().eval(), torch.randn(3, 1, 16, 16), background="zero", **options)
    assert calls == [1]


def test_a_missing_tangent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankscope.linear import methods

    class Runner:
        keys = (("layer", 0),)

        def outputs(self, sample: Any, x: Tensor, rows: Any = None) -> tuple[Tensor]:
            return (x.flatten(),)

    monkeypatch.setattr(methods, "jvp", lambda *_: (None, (None,)))
    sample: Any = type("S", (), {"x": torch.zeros(1, 1)})
    runner: Any = Runner()
    with pytest.raises(rs.MeasurementError, match="no tangent at 'layer'; it must not be read as zero"):
        methods._tangent(runner, sample, None, torch.zeros(1))


@pytest.mark.parametrize("wrong", [None, "zero", "off"])
@pytest.mark.parametrize("zero", [False, True])
def test_tangents_of_zero_are_held_against_reverse_mode(wrong: str | None, zero: bool) -> None:
    """Three linear layers, the last of them zero or not; the tangent of the second may be lost or off by a tenth."""
    from rankscope.linear.checks import adjoint_error
    from rankscope.slicing import Sample

    first, second, third = (torch.randn(5, 4, dtype=torch.float64) for _ in range(3))
    maps = (first, second, third * (0 if zero else 1))

    class Linear:
        keys = (("first", 0), ("second", 0), ("third", 0))
        dtype = torch.float64

        def outputs(self, sample: Any, x: Tensor, rows: Any = None) -> tuple[Tensor, ...]:
            return tuple(x @ each for each in maps)

    x, v = torch.randn(1, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    factor = {None: 1.0, "zero": 0.0, "off": 0.9}[wrong]
    tangents = (v @ maps[0], factor * (v @ maps[1]), v @ maps[2])
    error, where = adjoint_error(Linear(), Sample(x, "sample 0", None, {}), v, tangents)  # type: ignore[arg-type]
    assert error is not None
    if wrong is None:  # float64 sums of five terms
        assert (error < 1e-12, where) == (True, "")
    else:
        assert where == "second"
        assert error > 1e-3
        assert (error == 1) == (wrong == "zero")


def test_what_one_pass_shows_takes_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a pass of a deep network takes some 40 ms of the host, whatever its arithmetic takes."""
    from rankscope.linear.runner import Runner

    passes = 0
    plain = Runner.returned

    def counted(self: Runner, *args: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        return plain(self, *args, **options)

    monkeypatch.setattr(Runner, "returned", counted)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    profile = rs.jacobian_rank(net, torch.randn(1, 3, 8, 8), columns=rs.Patch(4), progress=False)
    assert profile.method.kind is FactKind.LINEARISED
    # one for what the sample calls; the method, the trace, casts, reverse mode; float64: casts, the method, two of the
    # function check; what a call leaves; the certificate: the piece, in float64 too, and its tangents
    assert passes == 13


def test_a_zero_jacobian_has_rank_zero() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[0].bias.fill_(-1e3)
    for dtype in ("float32", "float64"):
        for options in ({}, {"certify": False}):
            for tolerance in ("paper", "reference", "torch", 0.0, rs.Tolerance(atol=0.0)):
                profile = measure(net, torch.randn(2, 4), dtype=dtype, tolerance=tolerance, **options)
                assert profile.function_rank == (3, 0, 0)
                if not options:
                    assert all(e.upper == 0 for e in profile.layers[2].estimates(profile.tolerance))
    assert profile.summary(profile.layers[1])["zero_images"] == 2
    assert "zero on 2" in str(profile)


def test_a_jacobian_that_is_not_finite_is_named_and_the_others_are_measured() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(torch.relu(x))

    net = nn.Sequential(nn.Linear(4, 3), Root(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3, 4))
        net[0].bias.zero_()
    x = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 2.0]])
    profile = measure(net, x)
    assert [x.name for x in profile.layers] == ["0", "1", "2"]
    assert profile["1"].spectra[0] is None
    assert profile["1"].spectra[1].rank().value == 3
    assert profile.summary(profile["1"])["not_finite_images"] == 1
    alone = measure(net, x[:1])
    assert [x.name for x in alone.layers] == ["0"]
    assert alone.unmeasured == dict.fromkeys(("1", "2"), "its Jacobian has NaN or infinite entries on every image")
    assert "not measured: 1: its Jacobian has NaN" in str(alone)
    with pytest.raises(rs.UsageError, match="'1' was not measured: its Jacobian has NaN or infinite entries"):
        alone["1"]
    with pytest.raises(rs.MeasurementError, match="no cut point could be measured: 1: its Jacobian has NaN"):
        measure(net, x[:1], cut_points=["1"])


def test_a_linearised_path_that_fails_on_a_later_image_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankscope.linear import at_point
    from rankscope.linear.traced import TracedNetwork

    case = CASES["mlp"]
    x = case.sample(3)
    expected = measure(case.model(), x)
    plain = at_point.linearise

    def fails(network: TracedNetwork, point: Tensor, *rest: Any) -> Any:
        if len(point) > 1:
            raise RuntimeError("INTERNAL ASSERT FAILED at one.cpp: please report a bug")
        return plain(network, point, *rest)

    monkeypatch.setattr(at_point, "linearise", fails)
    found = measure(case.model(), x)
    same(expected, found, 1e-6)
    assert found.method == Fact(FactKind.PUSHED, {"name": "vmap(jvp)"})
    assert found.failed_methods == (
        Fact(FactKind.WAY_GIVEN_UP, {"name": "linearised network", "reason": "torch raised a RuntimeError inside"}),
    )


@pytest.mark.parametrize(
    ("dtype", "off", "taken"),
    [("float32", 1e-5, True), ("float32", 1e-3, False), ("float64", 1e-13, True), ("float64", 1e-9, False)],
)
def test_a_linearised_path_that_errs_is_not_taken(
    dtype: str, off: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding of the working precision is allowed it, 1e-4 and 1e-11 of the largest entry, and no more."""
    from rankscope.linear.linearise import Linearised

    plain = Linearised.__call__

    def errs(self: Linearised, *args: Any) -> tuple[Tensor, ...]:
        return tuple(t * (1 + off) for t in plain(self, *args))

    monkeypatch.setattr(Linearised, "__call__", errs)
    found = measure(CASES["mlp"].model(), CASES["mlp"].sample(), dtype=dtype)
    assert (found.method.kind is FactKind.LINEARISED) == taken
    assert bool(found.failed_methods) != taken
    assert taken or found.failed_methods[0].kind is FactKind.WAY_DIFFERS


# ---- background and patch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", ["image", "zero"])
def test_background(background: str) -> None:
    """J of x ↦ f(ψ(x)) equals the columns of J_f at the padded point."""
    case = CASES["residual"]
    model, x, patch = case.model(), case.sample(), rs.Patch(3)
    coordinates = patch.coordinates(case.shape)
    point = x.clone()
    if background == "zero":
        point = torch.zeros_like(x).flatten(1)
        point[:, coordinates] = x.flatten(1)[:, coordinates]
        point = point.view_as(x)
    profile = measure(model, x, columns=patch, background=background, cut_points=["head"])
    exact = torch.linalg.svdvals(oracle(model, point, "head")[:, coordinates]).numpy()
    np.testing.assert_allclose(profile["head"].spectra[0].singular_values, exact, atol=1e-5 * exact.max())
    assert profile.background == background
    other = measure(
        model, x, columns=patch, cut_points=["head"], background="zero" if background == "image" else "image"
    )
    assert not np.allclose(other["head"].spectra[0].singular_values, exact, atol=1e-3 * exact.max())


def test_a_sketch_finds_the_whole_rank_where_a_patch_may_not() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.Linear(48, 7, bias=False), nn.Linear(7, 20)).eval()
    x = torch.randn(1, 3, 4, 4)
    assert measure(net, x, columns=rs.Sketch(12))["3"].spectra[0].rank().value == 7
    assert measure(net, x, columns=rs.Patch(1))["3"].spectra[0].rank().value == 3
    assert measure(net, x, columns=rs.Sketch(5))["3"].spectra[0].rank().value == 5


# ---- theory ----------------------------------------------------------------------------------------------------------


def test_gaussian_stacks_hold_the_prediction() -> None:
    """n = 1000, depths 1, 10, 20, 50 as cut points of one network: the exact float64 rank, and the project's table.

    Within 2% of the table, or six at depth 50: there single draws scatter by 2 (115, 117, 116, 119, 121, 117, 115 in
    float64), because the threshold follows a σ₁ that itself varies; the prediction for infinite width is 116.
    """
    n, depth = 1000, 50
    expected = {0: (1000, 986), 9: (749, 456), 19: (507, 265), 49: (248, 115)}
    net = nn.Sequential(*[nn.Linear(n, n, bias=False) for _ in range(depth)]).eval()
    generator = torch.Generator().manual_seed(0)
    product, exact = torch.eye(n, dtype=torch.float64), {}
    with torch.no_grad():
        for k, layer in enumerate(net):
            layer.weight.copy_(torch.randn(n, n, generator=generator) / n**0.5)
            product = layer.weight.double() @ product
            if k in expected:
                exact[k] = rs.Spectrum.of(product)
    profile = rs.jacobian_rank(
        net, torch.zeros(1, n), cut_points=[str(k) for k in expected], columns="all", progress=False, chunk_size=250
    )
    assert profile.rises() == {}
    for k, ranks in expected.items():
        for tolerance, rank in zip(("paper", "reference"), ranks, strict=True):
            found = profile[str(k)].spectra[0].rank(tolerance)
            assert abs(found.value - exact[k].rank(tolerance).value) <= 1
            assert found.lower <= exact[k].rank(tolerance).value <= found.upper
            assert found.value == pytest.approx(rank, rel=0.02, abs=6 if k == 49 else 0)


def test_rises_are_marked_and_only_along_true_cuts() -> None:
    """The threshold follows σ₁: a layer that shrinks the top direction lets others count again."""
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([1e8, 1.0, 1.0])))
        net[1].weight.copy_(torch.diag(torch.tensor([1e-8, 1.0, 1.0])))
    profile = measure(net, torch.zeros(1, 3))
    assert profile.function_rank == (1, 3)
    assert profile.rises() == {"1": 2}
    assert "rises by 2" in str(profile)
    assert profile.with_tolerance(rs.Tolerance(atol=1e-9)).rises() == {}


# ---- dtypes and devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    model = CASES["mlp"].model().to(dtype)
    profile = measure(model, CASES["mlp"].sample())
    assert profile.dtype == "float32"
    assert profile.facts == (Fact(FactKind.WEIGHTS_RAISED, {"dtypes": (str(dtype)[6:],)}),)
    assert next(model.parameters()).dtype == dtype
    same(profile, measure(CASES["mlp"].model().to(dtype).float(), CASES["mlp"].sample()), 1e-7)


def test_float64_models_are_measured_in_float64() -> None:
    profile = measure(CASES["mlp"].model().double(), CASES["mlp"].sample())
    assert profile.dtype == "float64"
    assert profile.layers[0].spectra[0].dtype == "float64"


def test_tf32_settings_change_nothing() -> None:
    case = CASES["residual"]
    expected = measure(case.model(), case.sample())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        same(expected, measure(case.model(), case.sample()))
    finally:
        torch.set_float32_matmul_precision(before)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_the_same_images_in_every_form() -> None:
    case = CASES["residual"]
    x = case.sample(3)
    model = case.model()
    expected = measure(model, x, columns=rs.Patch(2), cut_points="blocks")
    assert expected.images == ("image 0", "image 1", "image 2")
    labels = torch.arange(3)
    forms: list[Any] = [
        torch.utils.data.TensorDataset(x, labels),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=2),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=None),
        torch.utils.data.DataLoader([{"x": i, "label": 3} for i in x], batch_size=2),
        {"x": x, "labels": labels},
        x.numpy(),
        [(i, 7) for i in x],
    ]
    for form in forms:
        found = measure(model, form, columns=rs.Patch(2), cut_points="blocks")
        assert len(found.images) == 3
        same(expected, found, 1e-6)
    for loose in (list(x), iter(x)):  # each may be a sample or a batch
        with pytest.raises(rs.UsageError, match="each a sample or a batch of them; give one tensor"):
            measure(model, loose)


def test_limit_names_and_progress() -> None:
    case = CASES["mlp"]
    seen: list[tuple[int, int | None, str]] = []
    profile = measure(
        case.model(), case.sample(5), limit=3, names=lambda i: f"digit {i}", progress=lambda *a: seen.append(a)
    )
    assert profile.images == ("digit 0", "digit 1", "digit 2")
    assert seen == [(1, 3, "digit 0"), (2, 3, "digit 1"), (3, 3, "digit 2")]
    assert len(measure(case.model(), torch.utils.data.DataLoader(case.sample(5), batch_size=2), limit=3).images) == 3
    assert measure(case.model(), case.sample(5), limit=9).images[-1] == "sample 4"


NAN = torch.tensor([[float("nan"), 1.0, float("inf"), 0, 0, 0, 0, 0]])
STACKED = torch.utils.data.DataLoader(
    list(torch.zeros(4, 8)), batch_size=2, collate_fn=lambda rows: torch.stack(rows, 1)
)
BAD_INPUTS = [
    (torch.zeros(0, 8), {}, rs.DataError, "there is no sample to measure"),
    ([], {}, rs.DataError, "there is no sample to measure"),
    (NAN, {}, rs.DataError, "sample 0 has 2 NaN or infinite values"),
    (torch.cat([torch.zeros(1, 8), NAN]), {}, rs.DataError, "sample 1 has 2 NaN"),
    (torch.zeros(2, 8, dtype=torch.long), {}, rs.DataError, r"dtype torch.int64, which cannot be differentiated"),
    (torch.zeros(8), {}, rs.DataError, r"shape \(8,\); its first dimension counts samples"),
    ([(torch.zeros(8), 0), (torch.zeros(7), 0)], {}, rs.ModelError, r"does not take .*shape \(1, 7\)"),
    ({"ids": torch.zeros(1, 8)}, {}, rs.UsageError, r"'ids', which forward does not take; name it .* \(input\)"),
    ({"input": torch.zeros(1, 8, dtype=torch.long)}, {}, rs.DataError, "no floating-point input .*int64"),
    (["a"], {}, rs.DataError, "a list holds a str"),
    (7, {}, rs.UsageError, "the input is a int; give a tensor"),
    (torch.zeros(1, 7), {}, rs.ModelError, r"Sequential failed on an input of shape \(1, 7\)"),
    (torch.zeros(8, 3), {}, rs.ModelError, r"\(the input has shape \(8, 3\), whose .* counts samples; give x\[None\]"),
    (STACKED, {}, rs.ModelError, r"\(the first batch has shape \(8, 2\), whose .* counts samples; give x\[None\]"),
    (torch.zeros(1, 8), {"limit": 0}, rs.UsageError, "limit is 0; it must be a whole number of at least 1"),
    (torch.zeros(1, 8), {"limit": -1}, rs.UsageError, "limit is -1"),
    (torch.zeros(1, 8), {"background": "zeros"}, rs.UsageError, "unknown background 'zeros'; did you mean 'zero'"),
    (torch.zeros(1, 8), {"background": "zero", "columns": rs.Sketch(2)}, rs.UsageError, "zero.? needs a patch"),
    (torch.zeros(1, 8), {"chunk_size": 0}, rs.UsageError, "chunk_size is 0; it must be a whole number"),
    (torch.zeros(1, 8), {"chunk_size": 1.5}, rs.UsageError, "chunk_size is 1.5"),
    (torch.zeros(1, 8), {"columns": rs.Sketch(9)}, rs.UsageError, "9 directions exceeds the input's 8 dimensions"),
    (torch.zeros(1, 8), {"columns": rs.Patch(2)}, rs.UsageError, "a patch needs inputs of shape"),
    (torch.zeros(1, 8), {"columns": 3}, rs.UsageError, "columns is 3"),
    (torch.zeros(1, 8), {"cut_points": "bloks"}, rs.CutPointError, "there is no module 'bloks'; did you mean 'blocks'"),
    (torch.zeros(1, 8), {"tolerance": "papr"}, rs.UsageError, "did you mean 'paper'"),
    (torch.zeros(1, 8), {"dtype": "float16"}, rs.UsageError, "dtype 'float16' cannot be used to measure"),
    (torch.zeros(1, 8), {"dtype": torch.bfloat16}, rs.UsageError, "give 'float32' or 'float64'"),
    (torch.zeros(1, 8), {"device": "gpu"}, rs.UsageError, "device 'gpu' is unknown"),
    (torch.zeros(1, 8), {"device": "meta"}, rs.UsageError, "device 'meta' is unknown"),
    (torch.zeros(1, 8), {"memory_budget": "4 apples"}, rs.UsageError, "memory_budget .4 apples. is not a size"),
    (torch.zeros(1, 8), {"memory_budget": "1.2.3"}, rs.UsageError, "is not a size"),
    (torch.zeros(1, 8), {"memory_budget": -3}, rs.UsageError, "memory_budget is -3; it must be a finite number"),
    (torch.zeros(1, 8), {"memory_budget": float("inf")}, rs.UsageError, "memory_budget is inf; it must be a finite"),
    (torch.zeros(1, 8), {"memory_budget": 10}, rs.DeviceError, "budget of 0 MB is too small: one tangent needs about"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "options", "error", "message"), BAD_INPUTS)
def test_bad_input(inputs: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        measure(CASES["mlp"].model(), inputs, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_absent() -> None:
    with pytest.raises(rs.DeviceError, match=r"'cuda' was asked for, but torch .*; use device=.cpu"):
        measure(CASES["mlp"].model(), torch.zeros(1, 8), device="cuda")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 3).to("meta"), "the weights of 'weight' are on the meta device and hold no numbers"),
        (nn.LazyLinear(3), "the weights of 'weight' are not made yet; call the model once"),
    ],
    ids=["meta", "lazy"],
)
def test_weights_that_are_not_there(model: nn.Module, message: str) -> None:
    with pytest.raises(rs.ModelError, match=message):
        measure(model.eval(), torch.zeros(1, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model = CASES["mlp"].model()
    with torch.no_grad():
        model[2].weight[0, 1] = value
    with pytest.raises(rs.ModelError, match=r"the weights of '2\.weight' hold 1 NaN or infinite values"):
        measure(model, torch.zeros(1, 8))
    model = settled(networks.ResidualCNN())
    model.stem[1].running_var[2] = abs(value)
    with pytest.raises(rs.ModelError, match=r"'stem\.1\.running_var' hold 1"):
        measure(model, CASES["residual"].sample())


def test_an_attention_mask_may_hold_minus_infinity() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.layer(x) @ x.transpose(1, 2) + self.mask, -1) @ x

    assert measure(nn.Sequential(Causal()).eval(), torch.randn(1, 3, 4)).function_rank == (12, 12)


def test_a_path_that_depends_on_the_input() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.count = nn.Linear(4, 4), nn.Linear(4, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.b(self.a(x)) if self.count == 1 else self.a(x)

    # every call starts from the state in which the model was given, and from there it is b(a(x)) each time
    model = Fickle().eval()
    profile = measure(model, torch.randn(1, 4))
    sigma = np.linalg.svd((model.b.weight @ model.a.weight).detach().double().numpy(), compute_uv=False)
    np.testing.assert_allclose(profile["b"].spectra[0].singular_values, sigma, atol=1e-5 * sigma[0])
    assert model.count == 0


def test_no_method_at_all() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no backward either")

    with pytest.raises(rs.MeasurementError, match=r"no way to differentiate this model worked.*no backward either"):
        measure(settled(networks.Custom(Broken)), torch.randn(1, 6))


def test_too_many_rows_for_reverse_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankscope.linear.methods.MAX_REVERSE_ROWS", 9)
    with pytest.raises(rs.MeasurementError, match=r"have 10 rows, one reverse pass each \(limit 9\)"):
        measure(CASES["reverse rows"].model(), CASES["reverse rows"].sample())


# ---- budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 2**32),
        ("1.5 MiB", 3 * 2**19),
        ("512", 512),
        (" 2k ", 2048),
        (1000.9, 1000),
        (".5G", 2**29),
        ("1TB", 2**40),
    ],
)
def test_budgets(text: Any, expected: int) -> None:
    assert budget_of(text, CPU) == expected
    assert 0 < budget_of(None, CPU) <= 4 * 2**30


def test_chunks_are_even() -> None:
    assert chunk_for(768, 10, 10**9, CPU) == 32
    assert chunk_for(33, 10, 10**9, CPU) == 17  # two passes of 17 and 16, not of 32 and 1
    assert chunk_for(100, 10, 95, CPU) == 9
    assert chunk_for(5, 10, 10**9, CPU) == 5
    assert chunk_for(768, 1, 10**9, torch.device("cuda")) == 256
    assert chunk_for(768, 10, 10**9, CPU, limit=100) == 96
    with pytest.raises(rs.DeviceError, match="too small: one tangent needs about 10 MB"):
        chunk_for(5, 10 * 2**20, 2**20, CPU)


# ---- CUDA ------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("language",)])
def test_cuda_agrees_with_the_cpu_within_the_certificate(name: str) -> None:
    case = CASES[name]
    meant = MEANT.get(name, {})
    cpu = measure(case.model(), case.sample(2), **meant)
    gpu = measure(case.model(), case.sample(2), device="cuda", **meant)
    for a, b in zip(cpu.layers, gpu.layers, strict=True):
        for p, q in zip(a.spectra, b.spectra, strict=True):
            gap = np.abs(p.singular_values**2 - q.singular_values**2).max()
            top, error = p.sigma_max, p.error_bound + q.error_bound
            assert gap <= 2 * top * error + error**2 + p.square_error + q.square_error


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["residual", "vit", "normalisations"])
def test_a_cuda_graph_equals_the_plain_path(name: str) -> None:
    from rankscope.linear.linearise import Linearised
    from rankscope.linear.methods import METHODS
    from rankscope.linear.runner import Runner
    from rankscope.slicing import measuring, read_samples, trace

    case, cuda = CASES[name], torch.device("cuda")
    model = case.model().to(cuda)
    samples = [s.to(cuda, torch.float32) for s in read_samples(model, case.sample(3))]
    calls = [c for c in trace(model, samples[0]).calls if c.depends]
    runner = Runner(model, [c.key for c in calls], cuda, torch.float32)
    replayed = Linearised(runner, METHODS[0], replay=True)
    with measuring(model, cuda), runner.hooked():
        for sample in samples:
            tangents = torch.randn(5, *case.shape, device=cuda)
            for a, b in zip(replayed(runner, sample, tangents), METHODS[0](runner, sample, tangents), strict=True):
                torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5 * float(b.abs().max()))
    assert replayed._point is not None
    assert replayed._point.replay, "recording failed"
    assert len(replayed._point._pushes) == 1


def test_an_image_of_a_batch_gets_storage_of_its_own(monkeypatch):
    """A tangent of a view can be allocated as large as all that it views."""
    seen = []
    prepared = measuring_module.prepared

    def watched(*args):
        sample = prepared(*args)
        seen.append(sample.x.untyped_storage().nbytes() == sample.x.nbytes)
        return sample

    monkeypatch.setattr(measuring_module, "prepared", watched)
    rs.jacobian_rank(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(6, 5))
    assert len(seen) >= 6
    assert all(seen)
