"""What the cut points of a whole Jacobian share: the same numbers, by passes that do not grow with their number."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.jacobian.products import products_of
from rankscope.jacobian.shared_passes import PushedTogether, SharedPasses
from rankscope.linear.at_point import AtPoint
from rankscope.linear.derivative import Derivative, Settings
from rankscope.linear.kinks import SamePiece
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.matrix import Matrix
from rankscope.linear.runner import Runner
from rankscope.linear.traced_here import TracedHere
from rankscope.slicing import ColumnsByShape, Sample, measuring, select, trace
from rankscope.spectra.exact import exact_spectrum

WAY: dict[str, Any] = {"columns": "all", "method": rs.Lanczos(probes=2, steps=4), "progress": False}


class Block(nn.Module):
    """A residual block that writes in place, as torchvision's do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu_(self.norm(self.a(x)))
        out: Tensor = self.b(h).add_(x)
        return out


def _net(blocks: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), *(Block(24) for _ in range(blocks)), nn.Linear(24, 6)).eval()


def _x(images: int = 1) -> Tensor:
    return torch.randn(images, 20, generator=torch.Generator().manual_seed(2))


@contextmanager
def _prepared(model: nn.Module, x: Tensor, budget: int = 2**24) -> Iterator[SharedPasses]:
    sample = Sample(x, "input 0")
    calls = [c for c in select(model, trace(model, sample), "all") if c.depends]
    settings = Settings("auto", 2**28, True, torch.device("cpu"), torch.float32, ColumnsByShape("all"))
    with measuring(model, torch.device("cpu")):
        derivative = Derivative(model, calls, settings)
        with derivative.runner.hooked():
            derivative.prepare(sample)
        yield SharedPasses(derivative, sample, budget, range(len(calls)))


def _jacobian(model: nn.Module, x: Tensor, name: str) -> np.ndarray:
    """Rows by autograd in float64, one at a time."""
    double = _net(len(model) - 2)
    double.load_state_dict(model.state_dict())
    seen: list[Tensor] = []
    double.double().get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    point = x.double().requires_grad_()
    double(point)
    rows = [torch.autograd.grad(v, point, retain_graph=True)[0].reshape(-1) for v in seen[0].reshape(-1)]
    return torch.stack(rows).numpy()


def _passes(monkeypatch: pytest.MonkeyPatch, model: nn.Module, cut_points: list[str]) -> Counter[str]:
    """Calls of the model for one sample, by precision and kind, after it was prepared."""
    seen: Counter[str] = Counter()
    plain = Runner.outputs

    def counted(self: Runner, *args: Any, **options: Any) -> Any:
        kind = "grad" if torch.is_grad_enabled() else "plain"
        if torch._C._functorch.maybe_current_level() is not None:
            kind = "push"
        seen[f"{kind} {self.dtype}"] += 1
        return plain(self, *args, **options)

    # small: each cut point is measured by probes, though all its rows would be the exact way
    monkeypatch.setattr("rankscope.jacobian.full_plan.way_for", lambda *_: "lanczos")
    monkeypatch.setattr("rankscope.spectra.matrix_free.way_for", lambda *_: "lanczos")
    monkeypatch.setattr("rankscope.jacobian.full_plan._SWEPT", 0)
    monkeypatch.setattr("rankscope.spectra.matrix_free._with_leading", lambda found, *_: found)
    monkeypatch.setattr(Runner, "outputs", counted)
    rs.jacobian_rank(model, _x(), cut_points=cut_points, tolerance=0.05, **WAY)
    monkeypatch.undo()
    return seen


def test_passes_do_not_grow_with_the_cut_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where J has more rows than columns, only pulls and Lanczos steps belong to one cut point."""
    model = _net()
    few = _passes(monkeypatch, model, ["1", "5"])
    many = _passes(monkeypatch, model, ["1", "2", "3", "4", "5"])
    # the traced network pushes float32 steps, and what it is compared by is pushed once
    for kind in ("plain torch.float32", "plain torch.float64", "push torch.float32", "push torch.float64"):
        assert many[kind] == few[kind] > 0, (kind, few, many)
    assert many["grad torch.float32"] > few["grad torch.float32"]


def test_products_are_the_jacobian_of_each_cut_point() -> None:
    model, x = _net(), _x()
    truths = {name: _jacobian(model, x, name) for name, _ in model.named_modules() if name}
    with _prepared(model, x) as passes:
        unit = torch.eye(20)
        for place, call in enumerate(passes.derivative.calls):
            truth = truths[call.name]
            map_ = passes.work(place)
            assert isinstance(map_.traced, TracedHere)
            alone = torch.cat(map_.push(unit), 1).T
            pushed = passes.together(place, exact=False)
            assert pushed is not None
            shared = pushed(unit)
            assert shared is not None
            # float32 sums of at most 24 terms in some 20 operators: 24 · 20 · 6e-8 of the largest entry
            assert np.abs(alone.numpy() - truth).max() <= 3e-5 * np.abs(truth).max(), call.name
            assert torch.equal(alone, shared), "one network's steps, to one output or to all"
            exact = passes.together(place, exact=True)
            assert exact is not None
            double = exact(unit.double())
            assert double is not None
            assert np.abs(double.numpy() - truth).max() <= 1e-13 * np.abs(truth).max(), call.name
            passes.done(place)


def _together(room: int) -> tuple[PushedTogether, list[int]]:
    """Of three matrices of 3, 4 and 5 rows; and how many columns each push had."""
    made: list[int] = []

    class Known(Matrix):
        def push(self, columns: Tensor, rows: Any = None) -> Tensor:
            made.append(columns.shape[1])
            parts = [torch.full((n, columns.shape[0]), float(n)) @ columns for n in self.sizes]
            return torch.cat([p if rows is None or rows[k] is None else p[:0] for k, p in enumerate(parts)])

    return PushedTogether(Known(None, (3, 4, 5), 0), room, {0, 1, 2}), made  # type: ignore[arg-type]


def test_columns_are_known_by_their_numbers() -> None:
    shared, made = _together(2**20)
    one, other = torch.ones(2, 1), torch.ones(2, 1) * 2
    assert torch.equal(shared.push(0, one), torch.full((3, 1), 6.0))
    assert torch.equal(shared.push(0, other), torch.full((3, 1), 12.0))
    assert torch.equal(shared.push(1, one.clone()), torch.full((4, 1), 8.0))
    assert made == [1, 1]
    assert torch.equal(shared.push(1, torch.ones(2, 2)), torch.full((4, 2), 8.0)), "of another shape"
    shared.push(2, one.half())
    assert made == [1, 1, 2, 1], "another precision rounds otherwise"


def test_what_is_measured_takes_no_memory_and_no_room_is_no_push() -> None:
    shared, made = _together(4 * (3 + 4 + 5))
    one, other = torch.ones(2, 1), torch.zeros(2, 1)
    shared.push(0, one)
    assert shared.held == 4 * 12
    assert shared.push(0, other) is None
    shared.done(0)
    assert shared.held == 4 * 9
    assert shared.push(1, other) is None
    shared.done(1)
    assert torch.equal(shared.push(2, one), torch.full((5, 1), 10.0))
    assert torch.equal(shared.push(2, other), torch.zeros(5, 1))
    assert shared.held == 2 * 4 * 5, "the rows of what waits alone"
    shared.done(2)
    assert shared.held == 0
    assert made == [1, 1]


def test_a_push_that_fails_is_left_to_each_cut_point() -> None:
    shared, _ = _together(2**20)

    def fails(*_: Any) -> Tensor:
        raise RuntimeError("too much at once")

    shared.matrix.push = fails  # type: ignore[method-assign]
    assert shared.push(0, torch.ones(2, 1)) is None


def test_a_trace_that_is_not_the_model_at_a_sample_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TracedHere._push

    def bent(self: TracedHere, *args: Any, **options: Any) -> Any:
        return tuple(1.001 * t for t in plain(self, *args, **options))

    monkeypatch.setattr(TracedHere, "_push", bent)
    model, x = _net(), _x()
    found = rs.jacobian_rank(model, x, cut_points=["3"], dtype="float32", **(WAY | {"method": "exact"}))
    swept = rs.jacobian_rank(model, x, cut_points=["3"], columns="all", progress=False)
    assert found["3"].spectra[0].rank().certified
    sigma = np.linalg.svd(_jacobian(model, x, "3"), compute_uv=False)
    # the error of float32 products would be a thousandth of σ₁, were they the bent ones
    assert np.abs(found["3"].spectra[0].singular_values - sigma).max() <= 1e-5 * sigma[0]
    assert swept["3"].spectra[0].rank().value == found["3"].spectra[0].rank().value


def test_coefficients_are_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the checks of the first sample took serve its products; a further sample takes its own."""
    made: list[weakref.ref[AtPoint]] = []
    plain = AtPoint.__init__

    def counted(self: AtPoint, *args: Any, **options: Any) -> None:
        made.append(weakref.ref(self))
        plain(self, *args, **options)

    monkeypatch.setattr(AtPoint, "__init__", counted)
    model = _net()
    with _prepared(model, _x()) as passes:
        map = passes.work(2)
        assert isinstance(map.traced, TracedHere)
        assert [ref() for ref in made] == [map.traced.point]
        column = torch.eye(20)[:1]
        expected = passes.derivative.plain(passes.sample).of_place(2).push(column)
        torch.testing.assert_close(map.push(column), expected)
        other = SharedPasses(passes.derivative, Sample(_x() + 1, "input 1"), 2**24, range(2))
        assert other._traced is not None
        assert [ref() is not None for ref in made] == [True, True]
        torch.testing.assert_close(map.push(column), expected)


def test_the_given_up_trace_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TracedHere._push
    monkeypatch.setattr(TracedHere, "_push", lambda self, *args: tuple(1.001 * t for t in plain(self, *args)))
    with _prepared(_net(), _x()) as passes:
        assert passes.work(0).traced is None
        (fact,) = [f for f in passes.derivative.failed_methods if f.kind is FactKind.WAY_GIVEN_UP]
        assert "differs from vmap(jvp) by" in fact["reason"]


def test_another_sample_is_not_pushed_at_this_point() -> None:
    with _prepared(_net(), _x()) as passes:
        other = passes.work(0).at(Sample(_x() + 1, "input 1"))
        with pytest.raises(RuntimeError, match="linearised at another sample"):
            other.push(torch.ones(1, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [None, 1], ids=["matrix", "squares"])
def test_the_certificate_sees_an_error_of_the_pushes_to_one_cut_point_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, budget: int | None
) -> None:
    """Those alone are used for the spectrum; that the push to all cut points is right says nothing of them."""
    plain = LinearMap.push

    def bent(self: LinearMap, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        factor = 1.5 if len(self.runner.keys) == 1 and self.dtype == dtype else 1.0
        return tuple(factor * part for part in plain(self, *args, **options))

    monkeypatch.setattr(LinearMap, "push", bent)
    model, x = _net(), _x()
    sigma = np.linalg.svd(_jacobian(model, x, "3"), compute_uv=False)
    with _prepared(model, x) as passes:
        place = next(k for k, call in enumerate(passes.derivative.calls) if call.name == "3")
        pair = products_of(passes, place)
        assert pair.certified
        assert pair.dense is not None
        operator, exact = (pair.work, pair.exact) if dtype == torch.float32 else pair.dense
        assert operator.shape == (24, 20), "the first of the two products is a push"
        found = exact_spectrum(operator, exact=exact, budget=budget)
    for threshold in (sigma[1:] + sigma[:-1]) / 2:
        rank = found.rank(rs.Tolerance(atol=float(threshold)))
        assert rank.lower <= int((sigma > threshold).sum()) <= rank.upper


class Recording(nn.Module):
    """Its forward turns gradients on, as code does that is tried out in a notebook."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net(2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            out: Tensor = self.net(x)
        return out


def test_no_graph_is_held_beside_what_is_shared() -> None:
    with _prepared(Recording().eval(), _x()) as passes:
        assert passes._shared is not None
        outputs, piece = passes._shared
        assert piece.inputs
        assert not any(held.requires_grad for held in (*outputs, *piece.inputs))
        aligned = SamePiece()
        aligned.inputs = [one + 1 for one in piece.inputs]  # units are moved
        other = passes.derivative.other(passes.sample)
        assert other is not None
        other.on_piece(aligned)
        assert any(isinstance(move, Tensor) and bool(move.any()) for move in aligned.moves)
        assert not any(isinstance(move, Tensor) and move.requires_grad for move in aligned.moves)


class Addressed(nn.Module):
    """What asks for the memory of a value has no forward mode, but a trace."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(40, 30), nn.Linear(30, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h.data_ptr()
        out: Tensor = self.b(h)
        return out


def test_the_way_is_that_of_the_products() -> None:
    """Where a push takes several passes of the model, products do not go by the traced network."""
    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(2))
    model = Addressed().eval()
    swept = rs.jacobian_rank(model, x, cut_points=["b"], progress=False)
    found = rs.jacobian_rank(model, x, cut_points=["b"], **(WAY | {"method": rs.Lanczos(probes=1, steps=3)}))
    assert swept.method.kind is FactKind.LINEARISED, "the trace serves a sweep"
    assert found["b"].spectra[0].rank().certified
    assert found.method.kind is FactKind.PUSHED
    assert found.method["name"] == swept.method["name"]
