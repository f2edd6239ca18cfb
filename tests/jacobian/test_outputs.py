"""The network's own output as a cut point, several outputs together and each by name, against dense float64 rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind

EPS32 = 2.0**-23


def rows(model: nn.Module, x: Tensor, pick: Callable[[Any], list[Tensor]]) -> Tensor:
    """The Jacobian of what ``pick`` takes of the output, one reverse pass per row. A complex number is two rows."""

    def function(value: Tensor) -> Tensor:
        parts = [torch.view_as_real(t) if t.is_complex() else t for t in pick(model(value))]
        return torch.cat([p.flatten() for p in parts])

    jacobian = torch.autograd.functional.jacobian(function, x)
    return jacobian.reshape(jacobian.shape[0], -1)


def rank(jacobian: Tensor, columns: int) -> int:
    """By the tolerance "paper": eps32 times the number of singular values, relative to the largest."""
    sigma = torch.linalg.svdvals(jacobian)
    count = min(len(jacobian), columns)
    return int((sigma >= EPS32 * count * sigma[0]).sum()) if len(sigma) and sigma[0] > 0 else 0


def measured(model: nn.Module, x: Tensor, cut_points: Any = "all") -> rs.JacobianProfile:
    return rs.jacobian_rank(model, x, cut_points=cut_points, columns="all", progress=False)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.f(x))


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))[:, :2]


@pytest.mark.parametrize(
    ("make", "names", "right"),
    [
        (lambda: nn.Linear(6, 4), ["output"], 4),
        (Skip, ["output"], 6),
        (Tail, ["a", "b", "output"], 2),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh()), ["0", "1"], 5),
    ],
)
def test_k4_the_networks_own_output_is_a_cut_point(make: Callable[[], nn.Module], names: list[str], right: int) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(2, 6, dtype=torch.float64)
    profile = measured(model, x, "blocks")
    assert [layer.name for layer in profile.layers] == names
    assert profile.layers[-1].true_cut
    assert profile.output == names[-1]
    assert profile["output"] is profile.layers[-1]
    assert profile.function_rank[-1] == right
    assert max(rank(rows(model, one[None], lambda y: [y]), 6) for one in x) == right
    alone = measured(model, x, ["output"])
    assert [layer.name for layer in alone.layers] == ["output"]
    assert alone.function_rank == (right,)
    assert rs.layers(model, x).output == names[-1]


def test_k4_the_output_is_not_listed_twice() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).eval()
    profile = measured(model, torch.randn(1, 6), ["1", "output"])
    assert [layer.name for layer in profile.layers] == ["1"]
    assert profile["output"].name == "1"
    named = measured(model, torch.randn(1, 6), ["0"])
    with pytest.raises(rs.UsageError, match="'output' is not in this profile"):
        named["output"]


def test_k4_a_module_that_is_called_output_keeps_its_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(x)[:, :2]

    profile = measured(Named().eval(), torch.randn(1, 6), ["output", "network:output"])
    assert [(layer.name, layer.rows) for layer in profile.layers] == [("output", 4), ("network:output", 2)]
    assert profile["output"].rows == 4
    assert profile.output == "network:output"


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    logits: Tensor
    aux: tuple[Tensor, Tensor]
    note: str = "text"


class Heads(nn.Module):
    """A trunk and heads whose outputs are put together by ``shape``."""

    def __init__(self, shape: Callable[..., Any], widths: tuple[int, ...], skip: bool) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 6)
        self.heads = nn.ModuleList(nn.Linear(6, w) for w in widths)
        self.shape, self.skip = shape, skip

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.trunk(x))
        h = h + x if self.skip else h
        return self.shape(*[torch.tanh(head(h)) for head in self.heads])


SHAPES: dict[str, tuple[Callable[..., Any], dict[str, Callable[[Any], Tensor]]]] = {
    "pair": (lambda a, b, c: (a, b), {"0": lambda y: y[0], "1": lambda y: y[1]}),
    "dict": (
        lambda a, b, c: {"logits": a, "aux": [b, None, c]},
        {"logits": lambda y: y["logits"], "aux.0": lambda y: y["aux"][0], "aux.2": lambda y: y["aux"][2]},
    ),
    "named tuple": (lambda a, b, c: Pair(b, c), {"first": lambda y: y.first, "second": lambda y: y.second}),
    "dataclass": (
        lambda a, b, c: Record(c, (a, b)),
        {"logits": lambda y: y.logits, "aux.0": lambda y: y.aux[0], "aux.1": lambda y: y.aux[1]},
    ),
    "views": (lambda a, b, c: [a, a[:, :1], a, b], {"0": lambda y: y[0], "1": lambda y: y[1], "3": lambda y: y[3]}),
    "integers": (lambda a, b, c: (a.argmax(-1), b, True, c), {"1": lambda y: y[1], "3": lambda y: y[3]}),
    "nested": (
        lambda a, b, c: ((a, {"x": b}), c),
        {"0.0": lambda y: y[0][0], "0.1.x": lambda y: y[0][1]["x"], "1": lambda y: y[1]},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(2))
def test_k6_outputs_together_and_each_by_name(name: str, seed: int) -> None:
    shape, parts = SHAPES[name]
    draw = random.Random(100 * seed + len(name))
    widths = tuple(draw.randint(1, 4) for _ in range(3))
    torch.manual_seed(seed)
    model = Heads(shape, widths, skip=bool(seed)).double().eval()
    x = torch.randn(2, 6, dtype=torch.float64)
    profile = measured(model, x, ["output", *[f"output.{p}" for p in parts]])
    each = {
        p: [rank(rows(model, one[None], lambda y, pick=pick: [pick(y)]), 6) for one in x] for p, pick in parts.items()
    }
    for p, right in each.items():
        layer = profile[f"output.{p}"]
        assert [e.value for e in layer.estimates(profile.tolerance)] == right, p
    together = [rank(rows(model, one[None], lambda y: [pick(y) for pick in parts.values()]), 6) for one in x]
    found = [e.value for e in profile["output"].estimates(profile.tolerance)]
    assert found == together
    assert profile["output"].true_cut
    for i, value in enumerate(found):
        assert max(right[i] for right in each.values()) <= value
        assert value <= sum(right[i] for right in each.values())
    (fact,) = of_kind(profile.facts, FactKind.SEVERAL_TENSORS)
    assert fact["names"] == ("output",)
    assert fact["tensors"] == tuple(parts)


def test_k6_one_head_alone_is_no_true_cut() -> None:
    model = Heads(lambda a, b: (a, b), (3, 2), skip=False).double().eval()
    x = torch.randn(1, 6, dtype=torch.float64)
    table = {c.name: c.true_cut for c in rs.layers(model, x)}
    assert table == {
        "trunk": True,
        "heads.0": False,
        "heads.1": False,
        "output.0": False,
        "output.1": False,
        "output": True,
    }
    assert [c for c, on in table.items() if on] == list(rs.layers(model, x).default)


def test_k6_of_an_lstm_the_network_uses_one_tensor() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Network().double().eval(), torch.randn(1, 3, 3, dtype=torch.float64)
    profile = measured(model, x, "all")
    assert [layer.name for layer in profile.layers] == ["cell.0", "head"]
    cell = model.cell
    named = measured(model, x, ["cell", "cell.0", "cell.1.1"])
    picks = {"cell.0": lambda y: [y[0]], "cell.1.1": lambda y: [y[1][1]], "cell": lambda y: [y[0], *y[1]]}
    for name, pick in picks.items():
        assert [e.value for e in named[name].estimates(named.tolerance)] == [rank(rows(cell, x, pick), 9)], name
    assert profile["cell.0"].estimates(profile.tolerance)[0].value == rank(rows(cell, x, picks["cell.0"]), 9)


def test_k6_images_that_share_a_sweep_keep_their_own_rows() -> None:
    torch.manual_seed(3)
    model = Heads(lambda a, b, c: {"a": a, "b": b.repeat(1, 2), "c": c}, (3, 2, 1), skip=True).eval()
    x = torch.randn(5, 6)
    together = measured(model, x, ["output"])
    alone = [measured(model, one[None], ["output"]) for one in x]
    for i, one in enumerate(alone):
        a, b = together["output"].spectra[i], one["output"].spectra[0]
        assert a is not None
        assert b is not None
        # two float32 sweeps of one matrix: a few rounding errors of σ_1 apart
        assert torch.allclose(torch.as_tensor(a.singular_values), torch.as_tensor(b.singular_values), atol=1e-5)


def test_k6_complex_outputs_are_real_and_imaginary_rows() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(self.layer(x))

    torch.manual_seed(0)
    model, x = Fourier().double().eval(), torch.randn(1, 6, dtype=torch.float64)
    profile = measured(model, x, "blocks")
    assert profile["output"].rows == 8
    assert profile.function_rank[-1] == rank(rows(model, x, lambda y: [y]), 6) == 6
    assert of_kind(profile.facts, FactKind.COMPLEX_ROWS)


def test_k6_what_is_no_tensor_is_refused_in_one_line() -> None:
    class Box:
        def __init__(self, y: Tensor) -> None:
            self.y = y

    class Boxed(nn.Module):
        def __init__(self, make: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.layer, self.make = nn.Linear(6, 6), make

        def forward(self, x: Tensor) -> Any:
            return self.make(self.layer(x))

    for make, what in ((Box, "Box"), (lambda y: (t for t in y), "generator"), (lambda y: y.to("meta"), "meta device")):
        with pytest.raises(rs.ModelError, match=f"return tensors with values from Boxed.*{what}"):
            rs.layers(Boxed(make), torch.zeros(1, 6))
    beside = measured(Boxed(lambda y: {"y": y * 2, "cache": Box(y)}).eval(), torch.randn(1, 6), "blocks")
    (fact,) = of_kind(beside.facts, FactKind.LEFT_OUT)
    assert fact["what"] == ("cache (Box)",)


def test_k6_an_output_that_does_not_depend_on_the_input_is_named() -> None:
    model = Heads(lambda a, b: (a, torch.ones(1, 3)), (3, 2), skip=False).eval()
    profile = measured(model, torch.randn(1, 6), ["output.0", "output.1"])
    assert profile.unmeasured == {"output.1": "its output does not depend on the input"}


class Encoder(nn.Module):
    """``way`` says what happens between encoder and head."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.encoder, self.head, self.way = nn.Sequential(nn.Linear(6, 4), nn.Tanh()), nn.Linear(4, 3), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "no_grad":
            with torch.no_grad():
                return self.head(self.encoder(x))
        if self.way == "inference":
            with torch.inference_mode():
                h = self.encoder(x)
            return self.head(h.clone())
        if self.way == "beside":
            with torch.no_grad():
                h = self.encoder(x)
            return self.head(h) + x[:, :3]
        if self.way == "checkpoint":
            return self.head(checkpoint(self.encoder, x, use_reentrant=True))
        h = self.encoder(x)
        if self.way == "detach":
            return self.head(h.detach())
        if self.way == "numpy":
            return self.head(torch.from_numpy(h.detach().numpy()))
        return self.head(torch.nn.functional.one_hot(h.argmax(-1), 4).to(x.dtype))


@pytest.mark.parametrize("way", ["no_grad", "inference", "checkpoint", "beside"])
def test_k5_what_hides_a_derivative_is_looked_through(way: str) -> None:
    torch.manual_seed(0)
    model = Encoder(way).double().eval()
    x = torch.randn(1, 6, dtype=torch.float64)
    head, first = model.head.weight.detach(), model.encoder[0].weight.detach()
    inner = (1 - model.encoder(x).detach()[0] ** 2)[:, None] * first
    expected = head @ inner + (torch.eye(6, dtype=torch.float64)[:3] if way == "beside" else 0)
    profile = measured(model, x, "all")
    spectrum = profile["output"].spectra[0]
    assert spectrum is not None
    # float64 throughout, Gram matrices squared: half the digits at most
    assert torch.allclose(torch.as_tensor(spectrum.singular_values), torch.linalg.svdvals(expected), atol=1e-7)
    assert profile.adjoint_error is not None
    assert profile.adjoint_error < 1e-6
    cuts = [layer.name for layer in profile.layers if layer.true_cut]
    assert cuts == (["output"] if way == "beside" else ["encoder.0", "encoder.1", "encoder", "head"])
    assert torch.is_inference_mode_enabled() is False
    with torch.inference_mode():
        assert torch.ones(1).is_inference()


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("detach", r"^remove \.detach\(\) from the forward of Encoder; no requested cut point depends on the input: "),
        ("numpy", r"^remove \.detach\(\) from the forward of Encoder; "),
        ("argmax", r"^choose cut points before the argmax in the forward of Encoder, which has no derivative; "),
    ],
)
def test_k5_what_ends_a_derivative_is_named_with_the_remedy_first(way: str, message: str) -> None:
    model, x = Encoder(way).eval(), torch.randn(1, 6)
    for cut_points in ("blocks", ["head"], ["output"]):
        with pytest.raises(rs.MeasurementError, match=message) as caught:
            measured(model, x, cut_points)
        assert len(str(caught.value)) < 200
    before = measured(model, x, "all")
    assert [layer.name for layer in before.layers] == ["encoder.0", "encoder.1", "encoder"]
    assert set(before.unmeasured) == {"head"}


def test_k5_a_module_deep_inside_is_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Encoder("detach"), nn.Linear(3, 3)).eval()
    with pytest.raises(rs.MeasurementError, match=r"^remove \.detach\(\) from '1' \(Encoder\); no requested"):
        measured(model, torch.randn(1, 6), ["2"])


def test_k5_an_operator_without_any_derivative_is_named() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no backward")

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Opaque.apply(x)

    with pytest.raises(rs.MeasurementError, match=r"^replace '1' \(Layer\) by plain operations, or choose") as caught:
        measured(nn.Sequential(nn.Linear(6, 6), Layer()).eval(), torch.randn(1, 6))
    assert len(str(caught.value)) < 400


def test_k6_a_tensor_of_a_module_has_a_spelling_that_no_module_has() -> None:
    class Split(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return self[0](x), x * 2

    model = nn.Sequential(Split(nn.Linear(6, 4))).eval()
    profile = measured(model, torch.randn(1, 6), ["0.0", "0:0", "0:1"])
    assert [(layer.name, layer.rows) for layer in profile.layers] == [("0.0", 4), ("0:0", 4), ("0.1", 6)]
