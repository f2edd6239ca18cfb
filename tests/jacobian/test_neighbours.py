"""Neighbours of the known cases: networks of a kind that went wrong, against float64 reverse mode of each sample."""

from __future__ import annotations

import collections
import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rankscope as rs
from rankscope._base.facts import FactKind

EPS32 = 2.0**-23


class Between(nn.Module):
    """Two linear layers, nested in modules, with a function of the module and of what is between them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Sequential(nn.Sequential(nn.Linear(width, width)))
        self.w, self.prelu = nn.Parameter(torch.rand(width) + 0.1), nn.PReLU(width)
        self.function = function
        with torch.no_grad():
            self.prelu.weight.uniform_(0.1, 0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


def wide(model: nn.Module) -> nn.Module:
    """A copy in float64, complex weights too."""
    copied = copy.deepcopy(model).double()
    for parameter in copied.parameters():
        if parameter.is_complex():
            parameter.data = parameter.data.to(torch.complex128)
    return copied


def rank_alone(model: nn.Module, x: Tensor) -> int:
    leaf = x[None].double().requires_grad_()
    out = wide(model)(leaf).flatten()
    rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in out]
    sigma = torch.linalg.svdvals(torch.stack(rows))
    return int((sigma >= EPS32 * min(len(rows), leaf.numel()) * sigma[0]).sum()) if sigma[0] > 0 else 0


def held_to_truth(model: nn.Module, x: Tensor, inputs: Any = None) -> rs.JacobianProfile:
    """Every sample's rank is certified, and is that of the sample alone."""
    given = x if inputs is None else inputs
    profile = rs.jacobian_rank(model, given, cut_points=["output"], columns="all", progress=False)
    found = profile["output"].estimates(profile.tolerance)
    assert [(e.lower <= e.value <= e.upper, e.certified) for e in found] == [(True, True)] * len(x)
    assert [e.value for e in found] == [rank_alone(model, one) for one in x]
    return profile


DTYPES = [torch.float32, torch.float64]

COUPLED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "softmax over samples": lambda _, h: h.softmax(0) + h,
    "deviation over samples": lambda _, h: h / (1 + h.std(0, unbiased=False)),
    "similarities": lambda _, h: (h @ h.T) @ h,
    "sums so far": lambda _, h: h.cumsum(0),
    "reversed": lambda _, h: h.flip(0),
    "the first one": lambda _, h: h + h[:1].detach(),
    "scaled by the largest": lambda _, h: torch.round(h / h.abs().max() * 127) / 127 * h.abs().max() + h,
    "half are kept": lambda _, h: h * F.one_hot(h[:, 0].topk((len(h) + 1) // 2)[1], len(h)).sum(0).to(h)[:, None],
    "decided by NumPy": lambda _, h: h if float(h.detach().numpy().sum()) > 0 else h[:, :2].repeat(1, 3),
    "decided by the count": lambda _, h: h if len(h) < 4 else h[:, :2].repeat(1, 3),
    "decided by any": lambda _, h: h if bool((h > 1).any()) else h.relu(),
    "groups of three": lambda _, h: torch.cat([c - c.mean(0) if len(c) > 1 else c for c in h.split(3)]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", COUPLED)
def test_j1_j2_samples_that_change_each_other(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    held_to_truth(Between(COUPLED[name]).to(dtype).eval(), torch.randn(5, 6).to(dtype))


class Sequences(nn.Module):
    """Recurrence or attention over the first dimension, which is the samples': each alone has length one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner: Any = nn.GRU(4, 4) if kind == "recurrence" else nn.MultiheadAttention(4, 2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x)[0] if isinstance(self.inner, nn.GRU) else self.inner(x, x, x)[0])


@pytest.mark.parametrize("kind", ["recurrence", "attention"])
@pytest.mark.parametrize("loaded", [False, True])
def test_j1_the_first_dimension_taken_for_time(kind: str, loaded: bool) -> None:
    torch.manual_seed(2)
    model, x = Sequences(kind).eval(), torch.randn(3, 4, 4)
    held_to_truth(model, x, DataLoader(TensorDataset(x), batch_size=2) if loaded else None)


class Tokens(nn.Module):
    def __init__(self, choose: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.last, self.choose = nn.Linear(3, 5), nn.Linear(5, 5), choose

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.choose(self, x))


def while_positive(m: Any, x: Tensor) -> Tensor:
    kept, i = [], 0
    while i < x.shape[1] and x[0, i, 0] > 0:
        kept.append(m.embed(x[:, i]))
        i += 1
    return torch.stack(kept, 1)


def left_early(m: Any, x: Tensor) -> Tensor:
    h = m.embed(x)
    for i in range(4):
        if float(x[0, i, 0]) <= 0:
            break
        h = torch.tanh(h) if i < 1 else h[:, : max(1, 4 - i)]
    return h


def zeroed(m: Any, x: Tensor) -> Tensor:
    h = m.embed(x).clone()
    h[x[..., 0] < 0] = 0
    return h


def padded(m: Any, x: Tensor) -> Tensor:
    kept = x[0][x[0, :, 0] > 0]
    return F.pad(m.embed(kept)[None], (0, 0, 0, 4 - len(kept)))


SIZED: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[int]]] = {
    "a loop that ends": (while_positive, [3, 6, 9, 12]),
    "an exit that comes early": (left_early, [12, 9, 6, 3]),
    "entries set to zero": (zeroed, [3, 6, 9, 12]),
    "padded to one size": (padded, [3, 6, 9, 12]),
    "a list of indices": (
        lambda m, x: m.embed(x[:, [i for i, v in enumerate(x[0, :, 0].tolist()) if v > 0]]),
        [3, 6, 9, 12],
    ),
    "their mean": (lambda m, x: m.embed(x[0][x[0, :, 0] > 0]).mean(0)[None], [3, 3, 3, 3]),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", SIZED)
def test_j5_sizes_that_depend_on_the_sample(name: str, order: int) -> None:
    choose, right = SIZED[name]
    torch.manual_seed(3)
    x = torch.randn(4, 4, 3)
    x[:, :, 0] = -x[:, :, 0].abs()
    for i in range(4):
        x[i, : i + 1, 0] *= -1
    profile = held_to_truth(Tokens(choose).eval(), x if order == 1 else x.flip(0))
    assert [e.value for e in profile["output"].estimates(profile.tolerance)] == right[::order]


ARGUMENTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a lower limit by tensor": lambda m, h: torch.clamp(h, min=m.w - 0.5),
    "limits by name": lambda _, h: torch.clamp(input=h, min=torch.tensor(-0.2), max=torch.tensor(0.4)),
    "clip": lambda m, h: torch.clip(h, -m.w, m.w),
    "clamped in place to one": lambda _, h: h.clone().clamp_(-0.1, 1),
    "clamped in place by tensor": lambda m, h: h.clone().clamp_min_(m.w * 0),
    "hardtanh in place": lambda _, h: F.hardtanh_(h.clone()),
    "a threshold of one in place": lambda _, h: F.threshold(h + 0, 0.1, 1, True) + h,
    "a slope of one": lambda _, h: F.leaky_relu(h, 1),
    "elu in place": lambda _, h: F.elu(h + 0, 1, True),
    "lerp": lambda m, h: torch.lerp(h, h.tanh(), m.w),
    "addcmul of one": lambda m, h: torch.addcmul(h, h, m.w, value=1),
    "add of one": lambda _, h: torch.add(h, h.relu(), alpha=1),
    "where": lambda m, h: torch.where(h > m.w, h, m.w * h),
    "prelu of channels": lambda m, h: m.prelu(h.view(-1, 6, 1)).view(-1, 6),
    "prelu by function": lambda m, h: F.prelu(h, m.w),
    "filled with one": lambda m, h: h.masked_fill(h < m.w * 0, 1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_k1_arguments_that_are_tensors_or_ones(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    held_to_truth(Between(ARGUMENTS[name]).to(dtype).eval(), torch.randn(3, 6).to(dtype))


class Carries(nn.Module):
    """A hidden state in a container of any kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.last, self.kind = nn.GRUCell(6, 6), nn.Linear(6, 6), kind
        self.state: Any = {
            "deque": collections.deque(maxlen=2), "defaultdict": collections.defaultdict(list), "set": set(),
            "namespace": types.SimpleNamespace(h=None), "dict": {},
        }[kind]  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        s = self.state
        before = {
            "deque": lambda: s[-1] if s else None, "defaultdict": lambda: s["h"][-1] if s["h"] else None,
            "set": lambda: next(iter(s), None), "namespace": lambda: s.h, "dict": lambda: s.get("h"),
        }[self.kind]()  # fmt: skip
        h = self.cell(x, before)
        if self.kind == "set":
            s.clear()
        keep: dict[str, Callable[[], Any]] = {
            "deque": lambda: s.append(h), "defaultdict": lambda: s["h"].append(h), "set": lambda: s.add(h),
            "namespace": lambda: setattr(s, "h", h), "dict": lambda: s.update(h=h),
        }  # fmt: skip
        keep[self.kind]()
        return self.last(h)


@pytest.mark.parametrize("kind", ["deque", "defaultdict", "set", "namespace", "dict"])
def test_k2_state_in_containers_of_a_nested_module(kind: str) -> None:
    torch.manual_seed(5)
    inner = Carries(kind)
    profile = held_to_truth(nn.Sequential(nn.Sequential(inner), nn.Linear(6, 6)).eval(), torch.randn(3, 6))
    assert FactKind.KEEPS_STATE in {f.kind for f in profile.facts}
    assert (inner.state.h is None) if kind == "namespace" else not inner.state


class Complex(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64) * 0.4)
        self.last, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, x.to(self.w.dtype)))


COMPLEX: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "absolute values": lambda m, c: (c @ m.w).abs(),
    "angles": lambda m, c: (c @ m.w).angle(),
    "real parts of a product": lambda m, c: ((c @ m.w).conj() * c).real,
    "rotated pairs": lambda m, c: torch.view_as_real(torch.complex(*c.real.chunk(2, 1)) * m.w[0, :3]).flatten(1),
    "a transform of two dimensions": lambda m, c: torch.fft.fft2((c * m.w[0]).view(-1, 2, 3)).abs().flatten(1),
    "polar": lambda m, c: torch.polar(c.real.abs() + 1, (c @ m.w).real).imag,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPLEX)
def test_k12_complex_parameters_are_certified(name: str) -> None:
    torch.manual_seed(6)
    held_to_truth(Complex(COMPLEX[name]).eval(), torch.randn(3, 6))


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr", "bsc"])
@pytest.mark.parametrize("how", ["buffer", "attribute", "parameter", "made dense"])
def test_k3_sparse_layouts_are_measured_or_refused_in_one_line(layout: str, how: str) -> None:
    """Against the product of the two matrices. A layout whose transposed product torch lacks has no derivative."""
    torch.manual_seed(7)
    dense = torch.randn(8, 6).relu()
    blocks = ((2, 2),) if layout.startswith("bs") else ()
    sparse = dense.to_sparse() if layout == "coo" else getattr(dense, f"to_sparse_{layout}")(*blocks)

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 6)
            if how == "parameter":
                self.matrix: Tensor = nn.Parameter(sparse, requires_grad=False)
            elif how == "attribute":
                self.matrix = sparse
            else:
                self.register_buffer("matrix", sparse)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x @ self.matrix.to_dense().T if how == "made dense" else (self.matrix @ x.T).T)

    model = Product().eval()
    if layout.startswith("bs") and how != "made dense":
        with pytest.raises(rs.RankscopeError, match="SparseBsc") as caught:
            rs.jacobian_rank(model, torch.randn(2, 6), progress=False)
        assert "\n" not in str(caught.value)
        return
    truth = torch.linalg.svdvals(model.last.weight.detach().double() @ dense.double())
    exact = int((truth >= EPS32 * 6 * truth[0]).sum())
    profile = rs.jacobian_rank(model, torch.randn(2, 6), cut_points=["output"], columns="all", progress=False)
    for estimate in profile["output"].estimates(profile.tolerance):
        assert estimate.certified
        assert estimate.lower <= exact <= estimate.upper
