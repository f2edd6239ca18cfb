"""Where the registry says that forward and reverse mode agree, torch's own two modes do, also exactly at kinks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import RightCube
from operations import IMAGES, OPERATIONS, Function
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.jacobian import batch
from rankscope.linear.modes import unknown_operators
from rankscope.linear.steps import linearise
from rankscope.linear.traced import TracedNetwork

OTHER = torch.tensor([0.0, 1, -1, 0, 2, 1, 0.5, -0.5, 0, 1, 1, 3, -3, 6, 20, 0, 1, 0, 0, -1, 2, 2, 0, 1])


def other(x: Tensor) -> Tensor:
    return OTHER.to(x).view(x.shape)


KINKS: dict[str, Callable[[Tensor], Any]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "threshold": lambda x: F.threshold(x, 0.5, 0.1),
    "elu": lambda x: F.elu(x, 0.7) + F.selu(x) + F.celu(x, 0.7),
    "softplus": lambda x: F.softplus(x, 1.0, 20.0),
    "shrink": lambda x: F.softshrink(x) + F.hardshrink(x) + F.tanhshrink(x),
    "abs, sign": lambda x: x.abs() + torch.sgn(x) + x.sign(),
    "clamp": lambda x: x.clamp(-1, 1) + x.clamp_min(0.5) + x.clamp_max(0.5),
    "clamp by tensors": lambda x: x.clamp(other(x), other(x) + 1) + torch.clamp(other(x), min=x, max=x + 1),
    "maximum": lambda x: torch.maximum(x, other(x)) + torch.minimum(x, other(x)) + torch.maximum(x, x.flip(-1)),
    "all": lambda x: x.max() + x.min() + x.median(),
    "along a dimension": lambda x: x.max(-1)[0] + x.min(-1)[0] + x.median(-1)[0] + x.kthvalue(2, -1)[0],
    "amax": lambda x: x.amax(-1) + x.amin(-1),
    "sort, topk": lambda x: x.sort(-1)[0][..., :2] + x.topk(2, -1)[0],
    "cummax": lambda x: x.cummax(-1)[0] + x.cummin(-1)[0] + x.cumprod(-1),
    "max pools": lambda x: F.max_pool2d(x, 3, 1, 1) + F.max_pool3d(x[None], (1, 3, 3), 1, (0, 1, 1))[0],
    "adaptive pools": lambda x: F.adaptive_max_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 2),
    "norms at zero": lambda x: (x * 0).norm(dim=-1) + (x * 0).norm(p=3, dim=-1) + torch.linalg.vector_norm(x, 1, -1),
    "largest norm": lambda x: x.norm(p=float("inf"), dim=-1) + x.norm(p=float("inf")) + x.norm(),
    "normalised": lambda x: F.normalize(x * 0, dim=-1) + F.cosine_similarity(x * 0, other(x), dim=-1)[..., None],
    "spread at zero": lambda x: (x * 0).std(-1, correction=0) + (x * 0).var(-1),
    "powers": lambda x: x**2 + x**0 + x.prod(-1, keepdim=True) + x.prod(),
    "steps": lambda x: x.round() + x.floor() + x.frac() + x.fmod(1.0) + x.remainder(1.0) + x.trunc() + x.ceil(),
    "chosen": lambda x: torch.where(x > 0, x, 2 * x) + x.masked_fill(x == 0, 1.0) + x * (x > 0),
    "losses": lambda x: F.smooth_l1_loss(x, other(x), reduction="none") + F.huber_loss(x, other(x), reduction="none"),
    "sums of exponentials": lambda x: x.logsumexp(-1) + torch.logaddexp(x, other(x)).sum(-1),
    "smooth": lambda x: F.gelu(x) + F.silu(x) + F.mish(x) + F.logsigmoid(x) + torch.sinc(x) + torch.nan_to_num(x),
}  # fmt: skip


def both_modes(function: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """The Jacobian of all outputs by columns and by rows, torch alone."""

    def outputs(y: Tensor) -> Tensor:
        found = function(y.clone())
        return torch.cat([o.reshape(-1) for o in (found if isinstance(found, tuple) else (found,))])

    with sdpa_kernel([SDPBackend.MATH]):
        eye = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
        columns = vmap(lambda v: jvp(outputs, (x,), (v,))[1])(eye).T
        leaf = x.clone().requires_grad_()
        out = outputs(leaf)
        rows = [torch.autograd.grad(o, leaf, retain_graph=True, materialize_grads=True)[0].reshape(-1) for o in out]
    return columns, torch.stack(rows)


def traced(function: Callable[[Tensor], Any], x: Tensor) -> TracedNetwork:
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        first = function(x.clone())
        runner: Any = Function(function, len(first) if isinstance(first, tuple) else 1)
        return TracedNetwork(runner, SimpleNamespace(x=x))  # type: ignore[arg-type]


def held_to_torch(function: Callable[[Tensor], Any], x: Tensor) -> bool:
    """Where nothing unknown and no tie is found the two modes agree; says whether that was so."""
    network = traced(function, x)
    with torch.no_grad():
        ties = linearise(network, x).ties
    if unknown_operators(network) or (ties is not None and bool(ties)):
        return False
    columns, rows = both_modes(function, x)
    both = columns.isfinite() & rows.isfinite()  # a NaN or infinity is no number that the modes could differ in
    # each entry is a sum of a few products, each rounded once
    scale = float(columns[both].abs().max()) if bool(both.any()) else 0.0
    assert float((columns - rows)[both].abs().max() if bool(both.any()) else 0) <= 64 * 2.0**-52 * max(scale, 1.0)
    return True


@pytest.mark.parametrize("name", KINKS)
def test_the_modes_agree_exactly_at_a_kink(name: str) -> None:
    x = torch.tensor([0.0, -0.0, 1, -1, 3, -3, 6, 2, 2, 0.5, -0.5, 0.5, 20, -20, 1, 0, 1, 1, 1, 0, 0, 2, 2, -1])
    assert held_to_torch(KINKS[name], x.double().view(1, 2, 3, 4)), "no operator of these is unknown"


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != "in place on a slice"])  # torch refuses its reverse
def test_the_modes_of_every_operation_agree_where_nothing_is_unknown(name: str) -> None:
    whole = torch.tensor([0.0, 1, -1, 2, 0, 1, 1, -2, 0.5, 0, 0, 3, 1, 1, 1, -1, 2, 0, 0, 0, 1, 2, -0.5, 0.5])
    held_to_torch(OPERATIONS[name], whole.double().view(2, 3, 4))


@pytest.mark.parametrize("name", IMAGES)
def test_the_modes_of_every_image_operation_agree_where_nothing_is_unknown(name: str) -> None:
    x = torch.randint(-1, 2, (2, 4, 6, 5), generator=torch.Generator().manual_seed(0)).double()
    held_to_torch(IMAGES[name], x)


@pytest.mark.parametrize("function", [torch.fmax, torch.fmin])
def test_fmax_of_equal_values_is_a_tie_and_elsewhere_none(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    network = traced(lambda x: function(x, torch.tensor([0.0, -1.0, 3.0], dtype=x.dtype)), x)
    tied = linearise(network, x).ties
    apart = linearise(network, x + 0.5).ties
    assert tied is not None
    assert apart is not None
    assert bool(tied)
    assert not bool(apart)


def test_aminmax_agrees_where_torch_has_its_forward_formula() -> None:
    x = torch.tensor([1.0, 1.0, 2.0, 2.0], dtype=torch.float64).view(1, 2, 2)
    try:
        jvp(lambda y: y.aminmax(dim=-1)[0], (x,), (x,))
    except NotImplementedError:
        pytest.skip("this torch has none")
    assert held_to_torch(lambda x: x.aminmax(dim=-1)[0], x)


def test_prelu_at_zero_is_a_tie_and_elsewhere_none() -> None:
    def function(x: Tensor) -> Tensor:
        return F.prelu(x, torch.tensor([0.25], dtype=x.dtype))

    x = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    network = traced(function, x)
    assert not unknown_operators(network)
    with torch.no_grad():
        assert not bool(linearise(network, x).ties)
        assert bool(linearise(network, x * torch.tensor([1.0, 0.0, 1.0])).ties)


def passes(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor) -> tuple[int, rs.JacobianProfile]:
    """How many reverse passes of an image a measurement of certified images makes."""
    count = 0
    plain = batch.pull_apart

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return plain(*args)

    monkeypatch.setattr(batch, "pull_apart", counted)
    profile = rs.jacobian_rank(model.eval(), x, progress=False, memory_budget="1MB")
    return count, profile


class Hooked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        if y.requires_grad:
            y.register_hook(lambda g: g)
        return y


class Scattered(nn.Module):
    """Two sources of one place: which of them stays is not said."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_put((torch.arange(len(x)),), x)


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return RightCube.apply(x)


@pytest.mark.parametrize(
    ("between", "reverse"),
    [
        (nn.ReLU(), 0),
        (nn.PReLU(), 0),
        (nn.Sequential(nn.LayerNorm(5), nn.GELU()), 0),
        (Hooked(), 1),
        (Scattered(), 1),
        (Custom(), 1),
    ],
    ids=["relu", "prelu", "smooth", "a hook", "an unknown operator", "a custom operator"],
)
def test_a_reverse_pass_of_an_image_only_where_it_could_show_something(
    between: nn.Module, reverse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(5, 5), between, nn.Linear(5, 5))
    count, profile = passes(monkeypatch, model, torch.randn(1, 5))
    assert count == reverse
    assert all(s.rank().certified for layer in profile.layers for s in layer.spectra if s is not None)
    assert FactKind.SOME_DISAGREE not in {fact.kind for fact in profile.facts}


def test_an_image_at_a_tie_has_its_reverse_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.PReLU(), nn.Linear(5, 5))
    assert passes(monkeypatch, model, torch.tensor([[1.0, 0, 1, -1, 2]]))[0] == 1
