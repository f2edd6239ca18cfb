"""``linear_map``: products against plain float64 autograd, what it refuses, and how it leaves the model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.linear import same_weights
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.matrix import Matrix
from rankscope.linear.runner import Runner
from rankscope.slicing import CallKey, measuring, read_samples

CPU = torch.device("cpu")


def convolutional() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).eval()


def rows_of(model: nn.Module, x: Tensor, name: str = "") -> Tensor:
    """The Jacobian by one reverse pass per row, in float64, of a copy."""
    exact = copy.deepcopy(model).double().eval()
    seen: list[Tensor] = []
    exact.get_submodule(name).register_forward_hook(lambda m, i, out: seen.append(out.reshape(-1).clone()))
    leaf = x.double().clone().requires_grad_()
    exact(leaf * 1)
    return torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0].reshape(-1) for v in seen[0]])


def close(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Within the rounding of sums of some hundred terms."""
    atol = (1e-12 if dtype == torch.float64 else 1e-5) * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_the_matrix(dtype: torch.dtype) -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    J = rs.linear_map(model, x, cut_points=["0", "3", "5"], dtype=dtype)
    assert list(J) == ["0", "3", "5"]
    assert {k: (r.start, r.stop) for k, r in J.rows.items()} == {"0": (0, 48), "3": (48, 60), "5": (60, 65)}
    assert (J.shape, J.input_shape, J.dtype, J.device) == ((65, 32), (2, 4, 4), dtype, CPU)
    whole = torch.cat([rows_of(model, x, name) for name in J])
    v, u = torch.randn(3, 2, 4, 4, dtype=dtype), torch.randn(4, 65, dtype=dtype)
    close(J.push(v), v.flatten(1).double() @ whole.T, dtype)
    close(J.pull(u).flatten(1), u.double() @ whole, dtype)
    assert J.pull(u).shape == (4, 2, 4, 4)
    # one vector gives one vector, none gives none
    close(J.push(v[0]), whole @ v[0].flatten().double(), dtype)
    close(J.pull(u[0]).flatten(), u[0].double() @ whole, dtype)
    assert J.push(v[:0]).shape == (0, 65)
    assert J.pull(u[:0]).shape == (0, 2, 4, 4)
    # one cut point alone, also by way of another
    close(J["3"].push(v), (v.flatten(1).double() @ whole.T)[:, 48:60], dtype)
    close(J["3"].pull(u[:, 48:60]).flatten(1), u[:, 48:60].double() @ whole[48:60], dtype)
    assert J["3"].shape == (12, 32)
    assert J["3"]["3"].shape == (12, 32)


def test_it_is_the_linearisation_that_torch_func_gives() -> None:
    model, x = convolutional().double(), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    model[2].inplace = False  # torch.func.linearize does not take it
    J = rs.linear_map(model, x)
    output, push = torch.func.linearize(model, x)
    pull = torch.func.vjp(model, x)[1]
    v, u = torch.randn(2, 4, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    close(J.push(v), push(v[None])[0])
    close(J.pull(u), pull(u[None])[0][0])
    dense = torch.func.jacrev(lambda y: model(y[None])[0])(x[0]).reshape(5, -1)
    close(J.pull(torch.eye(5, dtype=torch.float64)).flatten(1), dense)
    close(J.push(torch.eye(32, dtype=torch.float64).view(-1, 2, 4, 4)).T, dense)
    assert output.shape == (1, 5)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_rows_are_taken_in_the_order_asked(kind: Any) -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    J = rs.linear_map(model, x, cut_points=["0", "3", "5"], dtype="float64")
    v = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    whole = J.push(v)
    chosen = [64, 0, 50, 0, 12]
    torch.testing.assert_close(J.push(v, rows=kind(chosen)), whole[:, chosen], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(J.push(v, rows=J.rows["3"]), whole[:, 48:60], rtol=1e-13, atol=1e-14)
    assert J.push(v, rows=[]).shape == (2, 0)
    torch.testing.assert_close(J.push(v), whole, rtol=0, atol=0)  # and a choice leaves nothing behind


def test_another_point_is_another_map() -> None:
    model = convolutional()
    x, other = torch.randn(1, 2, 4, 4), 3 * torch.randn(1, 2, 4, 4)
    J = rs.linear_map(model, x, dtype="float64")
    there = J.at(other)
    v = torch.randn(2, 4, 4, dtype=torch.float64)
    close(there.push(v), rows_of(model, other) @ v.flatten())
    close(J.push(v), rows_of(model, x) @ v.flatten())  # the first one stays where it was
    close(there.push(v), rows_of(model, other) @ v.flatten())
    fresh = rs.linear_map(model, other, dtype="float64")
    torch.testing.assert_close(there.push(v), fresh.push(v), rtol=1e-14, atol=1e-15)
    assert there.facts == fresh.facts
    part = rs.linear_map(model, x, cut_points=["3", "5"], dtype="float64")["5"].at(other)
    close(part.pull(torch.ones(5, dtype=torch.float64)).flatten(), rows_of(model, other).sum(0))


class Branching(nn.Module):
    """Its path depends on the sign of its input's first value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.a(x) if bool(x.flatten()[0] > 0) else self.b(x)))


def test_a_map_follows_the_model_to_another_branch_and_another_length() -> None:
    model = Branching().eval()
    x = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    J = rs.linear_map(model, x, dtype="float64")
    v = torch.randn(4, dtype=torch.float64)
    close(J.at(-x).push(v), rows_of(model, -x) @ v)
    with pytest.raises(rs.MeasurementError, match="'a' was called when the model was traced but not now"):
        rs.linear_map(model, x, cut_points=["a"]).at(-x)
    tokens = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    short, long = torch.randn(1, 2, 3), torch.randn(1, 5, 3)
    longer = rs.linear_map(tokens, short, dtype="float64").at(long)
    assert longer.shape == (10, 15)
    w = torch.randn(5, 3, dtype=torch.float64)
    close(longer.push(w), rows_of(tokens, long) @ w.flatten())


def test_another_precision_starts_from_the_input_as_it_was_given() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    x = torch.randn(1, 3, dtype=torch.float64)
    J = rs.linear_map(model, x, dtype="float32")
    double = J.in_dtype(torch.float64)
    v = torch.randn(3, dtype=torch.float64)
    close(double.push(v), rows_of(model, x) @ v)  # 1e-12: not by way of a float32 input
    close(double.in_dtype("float32").push(v.float()), rows_of(model, x) @ v, torch.float32)
    assert (J.dtype, double.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_scipy_operator(dtype: str) -> None:
    from scipy.sparse.linalg import lsqr, svds

    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    J = rs.linear_map(model, x, cut_points=["3", "5"], dtype=dtype)
    A = J.scipy()
    dense = torch.cat([rows_of(model, x, name) for name in J]).numpy()
    accuracy = 1e-12 if dtype == "float64" else 1e-5
    v, u = np.random.default_rng(0).normal(size=(32, 3)), np.random.default_rng(1).normal(size=(17, 3))
    assert A.shape == (17, 32)
    assert A.dtype == np.dtype(dtype)
    np.testing.assert_allclose(A @ v[:, 0], dense @ v[:, 0], atol=accuracy)
    np.testing.assert_allclose(A.rmatvec(u[:, 0]), dense.T @ u[:, 0], atol=accuracy)
    np.testing.assert_allclose(A.matmat(v), dense @ v, atol=accuracy)
    np.testing.assert_allclose(A.rmatmat(u), dense.T @ u, atol=accuracy)
    np.testing.assert_allclose(A.matvec(v[:, :1]), dense @ v[:, :1], atol=accuracy)
    assert (A @ v[:, :0]).shape == (17, 0)
    assert A.rmatmat(u[:, :0]).shape == (32, 0)
    np.testing.assert_allclose(A @ (v[:, 0] + 2j * v[:, 1]), dense @ (v[:, 0] + 2j * v[:, 1]), atol=accuracy)
    top = svds(A, k=3, return_singular_vectors=False, random_state=0)
    np.testing.assert_allclose(np.sort(top), np.linalg.svd(dense)[1][2::-1], rtol=100 * accuracy)
    solved = lsqr(A, dense @ v[:, 0], atol=1e-14, btol=1e-14)[0]
    np.testing.assert_allclose(dense @ solved, dense @ v[:, 0], atol=1e-3 if dtype == "float32" else 1e-9)


class Counting(nn.Module):
    """Its output depends on how often it was called: a buffer in place, an attribute, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls, self.seen = nn.Linear(3, 3), 0, list[int]()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.scale.mul_(2)
        return self.scale * torch.tanh(self.linear(x)) * self.calls


def test_a_model_that_keeps_state_starts_from_it_every_time() -> None:
    model, x = Counting().eval(), torch.randn(1, 3)
    model.train()
    expected = rows_of(model, x)
    J = rs.linear_map(model, x, dtype="float64")
    v, u = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for _ in range(2):
        close(J.push(v), v @ expected.T)
        close(J.pull(u), u @ expected)
        close(J.at(x).push(v), v @ expected.T)
        assert (model.calls, model.seen, float(model.scale), model.training) == (0, [], 1.0, True)
    assert not any(m._forward_hooks for m in model.modules())
    assert of_kind(J.facts, FactKind.TRAINING_MODE)
    model(x)  # the user's own call: from here on it is another function
    with pytest.raises(rs.UsageError, match="Counting has changed since this Jacobian was taken: other weights, buf"):
        J.push(v)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.data.mul_(2),
        lambda m: m[0].bias.data.copy_(torch.ones(3)),
        lambda m: setattr(m[1], "slope", 2.0),
        lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
        lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight[[1, 0, 2]].detach())),
    ],
)
def test_a_model_that_changed_is_refused(change: Any, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large model no copy is kept."""
    if large:
        monkeypatch.setattr(same_weights, "_LARGE", 0)

    class Slope(nn.Module):
        slope = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.slope = 1.5

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.slope * x)

    model, x = nn.Sequential(nn.Linear(3, 3), Slope()).eval(), torch.randn(1, 3)
    J = rs.linear_map(model, x)
    with torch.no_grad():
        model[0].weight.mul_(1.0)  # counted as a write, and changes nothing
    before = J.push(torch.ones(3))
    change(model)
    for product in (lambda: J.push(torch.ones(3)), lambda: J.pull(torch.ones(3)), lambda: J.at(x)):
        with pytest.raises(rs.UsageError, match="has changed since this Jacobian was taken"):
            product()
    assert bool((rs.linear_map(model, x).push(torch.ones(3)) != before).any())


def test_the_input_may_change_afterwards() -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    expected = rows_of(model, x)
    J = rs.linear_map(model, x, dtype="float64")
    x.zero_()
    close(J.push(torch.ones(2, 4, 4, dtype=torch.float64)), expected.sum(1))
    close(J.in_dtype("float32").push(torch.ones(2, 4, 4)), expected.sum(1), torch.float32)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


def test_a_model_that_draws_random_numbers_is_named() -> None:
    J = rs.linear_map(nn.Sequential(nn.Linear(4, 4), Random()).eval(), torch.randn(1, 4))
    assert of_kind(J.facts, FactKind.RANDOM_MODEL)
    assert "random in evaluation mode" in repr(J)
    assert any("random in evaluation mode" in note for note in J.notes)


class Wrong(torch.autograd.Function):
    """A backward formula that is not the derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:
        return 2 * v

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g * ctx.saved_tensors[0]


def test_modes_that_disagree_are_named() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Wrong.apply(x)  # type: ignore[no-any-return]

    J = rs.linear_map(nn.Sequential(nn.Linear(4, 4), Net()).eval(), torch.randn(1, 4), dtype="float64")
    kinds = {fact.kind for fact in J.facts if fact.caution}
    assert kinds & {FactKind.REVERSE_DISAGREES, FactKind.LEAVES_COMPUTATION, FactKind.FUNCTION_UNCHECKED}
    assert len(repr(J).splitlines()) > 1


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        h = torch.tanh(self.linear(x)) * mask[..., None] * scale
        return {"tokens": h, "mean": h.mean(1)}


def test_further_inputs_and_several_outputs() -> None:
    model = Masked().eval()
    x, mask = torch.randn(1, 2, 3), torch.tensor([[1.0, 0.25]])
    given = {"x": x, "mask": mask, "scale": 2.0}
    J = rs.linear_map(
        model, given, cut_points=["linear", "output.mean"], differentiate="x", shared="mask", dtype="float64"
    )
    exact = copy.deepcopy(model).double()
    dense = torch.autograd.functional.jacobian(lambda y: exact(y, mask.double(), 2.0)["mean"], x.double())
    v = torch.randn(2, 3, dtype=torch.float64)
    close(J["output.mean"].push(v), dense.reshape(3, 6) @ v.flatten())
    mask.zero_()
    close(J["output.mean"].push(v), dense.reshape(3, 6) @ v.flatten())
    other = J.at({"x": x, "mask": torch.tensor([[0.5, 1.0]]), "scale": 1.0})
    moved = torch.autograd.functional.jacobian(
        lambda y: exact(y, torch.tensor([[0.5, 1.0]], dtype=torch.float64))["mean"], x.double()
    )
    close(other["output.mean"].push(v), moved.reshape(3, 6) @ v.flatten())


def test_what_is_refused() -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    J = rs.linear_map(model, x, cut_points=["3", "5"])
    v = torch.ones(2, 4, 4)
    with pytest.raises(rs.UsageError, match=r"v has shape \(4, 4\); give \(2, 4, 4\), or \(k, 2, 4, 4\) for k of them"):
        J.push(v[0])
    with pytest.raises(rs.UsageError, match=r"u has shape \(3,\); give \(17,\), or \(k, 17\) for k of them at once"):
        J.pull(torch.ones(3))
    with pytest.raises(
        rs.UsageError, match=r"v is torch.float64 and this Jacobian torch.float32; convert it with v.to"
    ):
        J.push(v.double())
    with pytest.raises(rs.UsageError, match=r"v is torch.int64 and this Jacobian torch.float32; convert it with v.to"):
        J.push(v.long())
    with pytest.raises(rs.UsageError, match=r"v is on meta and this Jacobian on cpu; move it with v.to\('cpu'\)"):
        J.push(v.to("meta"))
    with pytest.raises(rs.UsageError, match="v is of type list; give a tensor"):
        J.push([1.0])  # type: ignore[arg-type]
    with pytest.raises(rs.UsageError, match="rows names row 17; this Jacobian has rows 0 to 16"):
        J.push(v, rows=[0, 17])
    with pytest.raises(rs.UsageError, match="rows names row -1; this Jacobian has rows 0 to 16"):
        J.push(v, rows=[-1])
    with pytest.raises(rs.UsageError, match=r"rows is \[True, False\]; give a list of row numbers"):
        J.push(v, rows=[True, False])
    with pytest.raises(rs.UsageError, match="no cut point '4' here; known are '3', '5'"):
        J["4"]
    with pytest.raises(rs.UsageError, match=r"x holds 2 samples; give one, such as x\[:1\]"):
        rs.linear_map(model, torch.randn(2, 2, 4, 4))
    with pytest.raises(rs.UsageError, match=r"x holds 3 samples; give one, such as x\[:1\]"):
        J.at(torch.randn(3, 2, 4, 4))
    with pytest.raises(rs.ModelError, match=r"does not take torch.float32 inputs of shape \(1, 3, 4, 4\)"):
        J.at(torch.randn(1, 3, 4, 4))
    with pytest.raises(rs.UsageError, match="dtype 'bfloat16' cannot be used to measure; give 'float32' or 'float64'"):
        J.in_dtype("bfloat16")
    with pytest.raises(rs.CutPointError, match="nothing"):
        rs.linear_map(model, x, cut_points=["nothing"])
    with pytest.raises(rs.DataError, match="NaN"):
        rs.linear_map(model, x * torch.nan)
    with pytest.raises(rs.DeviceError, match="one tangent needs about"):
        rs.linear_map(model, x, memory_budget=1).push(v)
    with torch.no_grad():
        model[5].weight.fill_(torch.nan)
    with pytest.raises(rs.ModelError, match=r"the weights of '5.weight' hold 60 NaN or infinite values"):
        rs.linear_map(model, x)


def test_the_model_is_as_it_was_after_an_error() -> None:
    class Fails(nn.Module):
        """Differentiable forwards; backwards it raises."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return Raises.apply(x)  # type: ignore[no-any-return]

    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def jvp(ctx: Any, v: Tensor) -> Tensor:
            return 2 * v

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            raise RuntimeError("no way back\nsecond line")

    model = nn.Sequential(nn.Linear(3, 3), Fails()).train()
    J = rs.linear_map(model, torch.randn(1, 3))
    v = torch.ones(3)
    close(J.push(v), 2 * (model[0].weight.detach().double() @ v.double()), torch.float32)
    with pytest.raises(
        rs.MeasurementError, match="need reverse mode, which fails at 'output': no way back; jacobian_rank"
    ):
        J.pull(torch.ones(3))
    assert (model[1].calls, model.training, torch.is_grad_enabled()) == (0, True, True)
    assert not any(m._forward_hooks for m in model.modules())
    close(J.push(v), 2 * (model[0].weight.detach().double() @ v.double()), torch.float32)


def test_products_carry_no_gradient_and_take_any_layout() -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    J = rs.linear_map(model, x, dtype="float64")
    v = torch.randn(3, 4, 4, 2, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    found = J.push(v)
    assert not found.requires_grad
    close(found, v.detach().flatten(1) @ rows_of(model, x).T)
    wide = torch.randn(5, 3, dtype=torch.float64).T
    close(J.pull(wide).flatten(1), wide @ rows_of(model, x))
    with torch.inference_mode():
        again = J.push(v)
    torch.testing.assert_close(again, found, rtol=1e-14, atol=1e-15)


# ---- the map below it, which sweeps and certificates use -------------------------------------------------------------


def inner(model: nn.Module, x: Tensor, *names: str, dtype: torch.dtype = torch.float64) -> LinearMap:
    sample = next(read_samples(model, x)).to(CPU, dtype)
    return LinearMap.of(Runner(model, [CallKey(name) for name in names], CPU, dtype), sample)


def test_hooks_are_in_place_inside_a_product_only() -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    top, bottom = rows_of(model, x, "0"), rows_of(model, x, "5")
    tangents = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    with measuring(model, CPU):
        J = inner(model, x, "0", "5")
        assert J.shape == (53, 32)
        first, last = J.push(tangents)
        assert not any(m._forward_hooks for m in model.modules())
        close(first, tangents.flatten(1) @ top.T)
        close(last, tangents.flatten(1) @ bottom.T)
        some = J.push(tangents, [torch.tensor([3, 1]), torch.zeros(0, dtype=torch.long)])
        assert [tuple(s.shape) for s in some] == [(2, 2), (2, 0)]
        close(some[0], first[:, [3, 1]])
        close(J.of_place(1).push(tangents)[0], last)
        close(J.in_dtype(torch.float32).push(tangents.float())[1], last, torch.float32)
        u = [torch.randn(3, 48, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)]
        close(J.pull(u).flatten(1), u[0] @ top + u[1] @ bottom)
        close(J.pull(u, together=2).flatten(1), u[0] @ top + u[1] @ bottom)  # 2 and then 1
        absent = inner(model, x, "0")
        elsewhere = LinearMap(Runner(model, [CallKey("5", 1)], CPU, torch.float64), absent.method, absent.sample)
        with pytest.raises(rs.MeasurementError, match="'5' was called when the model was traced but not now"):
            elsewhere.outputs()
        assert not any(m._forward_hooks for m in model.modules())


class _BackwardPasses(TorchDispatchMode):
    """How many samples each call of a convolution's backward formula has."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.batches.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_cotangents_that_go_back_together_are_one_batch_of_every_convolution() -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    exact = rows_of(model, x, "5")
    u = torch.randn(7, 5, dtype=torch.float64)
    with measuring(model, CPU):
        J = inner(model, x, "5")
        with _BackwardPasses() as passes:
            close(J.pull([u], together=7).flatten(1), u @ exact)
        assert passes.batches == [7]
        with _BackwardPasses() as passes:
            close(J.pull([u]).flatten(1), u @ exact)
        assert passes.batches == [1] * 7


def test_a_product_that_runs_out_of_memory_goes_on_in_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutional(), torch.randn(1, 2, 4, 4)
    exact = rows_of(model, x)
    with measuring(model, CPU):
        J = inner(model, x, "5")
        plain, sizes = LinearMap.push, list[int]()

        def narrow(self: LinearMap, tangents: Tensor, rows: Any = None) -> tuple[Tensor, ...]:
            sizes.append(len(tangents))
            if len(tangents) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return plain(self, tangents, rows)

        monkeypatch.setattr(LinearMap, "push", narrow)
        matrix = Matrix(J, (5,), 2**30)
        columns = torch.randn(32, 13, dtype=torch.float64)
        close(matrix.push(columns), exact @ columns)
        assert sizes == [13, 6, 3, 3, 3, 3, 1]
        close(matrix.push(columns), exact @ columns)
        assert max(sizes[7:]) <= 3  # it is not tried again
        monkeypatch.setattr(LinearMap, "push", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))
        with pytest.raises(torch.OutOfMemoryError, match="none left"):
            matrix.push(columns)
