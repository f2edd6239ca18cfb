"""The derivative against the function itself: what leaves is told, where it leaves, and nothing else is called that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.linear.secant import secant_direction


class Fn(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def leak(x: Tensor) -> Tensor:
    return 0.9 * x + 0.1 * x.detach()


CHECKS = (FactKind.LEAVES_COMPUTATION, FactKind.RANDOM_MODEL, FactKind.FUNCTION_UNCHECKED)


def facts(model: nn.Module, x: Tensor | None = None, **options: Any) -> list[Fact]:
    given = {"cut_points": "all", "progress": False, **options}
    profile = rs.jacobian_rank(model.eval(), torch.randn(1, 32) if x is None else x, **given)
    return [fact for fact in profile.facts if fact.kind in CHECKS]


def around(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), Fn(function), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))


WAYS: dict[str, dict[str, Any]] = {
    "certified": {},
    "float64": {"dtype": "float64"},
    "float32 alone": {"certify": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_first_layer_is_named(way: str) -> None:
    tail = [layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.Tanh())]
    model = nn.Sequential(nn.Linear(32, 32), Fn(leak), *tail, Fn(leak), nn.Linear(32, 32))
    (fact,) = facts(model, **WAYS[way])
    # a tenth of the slope is constant, so differences and derivative differ by a tenth of the larger
    assert (fact.kind, fact["where"], round(fact["gap"], 2)) == (FactKind.LEAVES_COMPUTATION, "1", 0.1)


def test_a_wrong_formula_is_named_where_it_is() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return 1.1 * tangent

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad.clone()

    wrong = [layer for _ in range(3) for layer in (Fn(lambda t: Wrong.apply(t)), nn.Linear(32, 32))]
    profile = rs.jacobian_rank(
        nn.Sequential(nn.Linear(32, 32), *wrong).eval(), torch.randn(1, 32), cut_points="all", progress=False
    )
    (fact,) = of_kind(profile.facts, FactKind.REVERSE_DISAGREES)
    assert fact["where"] == "1"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clean", [True, False])
def test_casts_inside_do_not_stop_the_check(clean: bool, way: str) -> None:
    def norm(x: Tensor) -> Tensor:
        wide = x.float()
        return (wide / wide.pow(2).mean(-1, keepdim=True).sqrt()).to(x.dtype)

    model = nn.Sequential(around(norm), Fn(nn.Identity() if clean else leak), nn.Linear(32, 32))
    found = facts(model, **WAYS[way])
    assert len(found) == (0 if clean else 1)
    assert all((f["where"], round(f["gap"], 2)) == ("1", 0.1) for f in found)


@pytest.mark.parametrize("options", [{"certify": False}, {"certify": False, "dtype": "float64"}], ids=["32", "64"])
def test_what_could_not_be_checked_is_said(options: dict[str, Any]) -> None:
    # steps of 2^-8 where the widest step of the check is some 10^-3: no two slopes agree
    (fact,) = facts(around(lambda t: t.bfloat16().to(t.dtype)), **options)
    assert fact.kind is FactKind.FUNCTION_UNCHECKED
    assert fact["reason"] == "the model casts to bfloat16 inside, which drowns a short step"


@pytest.mark.parametrize("clean", [True, False])
def test_without_the_casts_half_precision_is_checked_too(clean: bool) -> None:
    half = around(lambda t: t.bfloat16().to(t.dtype) if clean else leak(t.bfloat16()).to(t.dtype))
    assert [f.kind for f in facts(half)] == ([] if clean else [FactKind.LEAVES_COMPUTATION])


def test_a_model_that_fails_in_the_check_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankscope.linear import derivative

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(derivative, "against_the_function", fails)
    assert facts(around(leak)) == [Fact(FactKind.FUNCTION_UNCHECKED, {"where": "", "reason": "no such kernel"})]


@pytest.mark.parametrize("way", WAYS)
def test_random_numbers_are_no_leak(way: str) -> None:
    for draw in (lambda t: t + 0.1 * torch.randn_like(t), lambda t: nn.functional.dropout(t, 0.3, training=True)):
        options = {"cut_points": "all", "progress": False, **WAYS[way]}
        (fact,) = rs.jacobian_rank(around(draw).eval(), torch.randn(1, 32), **options).facts
        assert (fact.kind, fact["where"]) == (FactKind.RANDOM_MODEL, "1")


def chain(deviation: float, depth: int, *first: nn.Module) -> nn.Module:
    layers: list[nn.Module] = [*first]
    for _ in range(depth):
        linear = nn.Linear(64, 64)
        nn.init.normal_(linear.weight, std=deviation / 8)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("deviation", "depth"), [(3, 60), (5, 30), (5, 60)])
def test_a_function_that_bends_is_no_leak(deviation: float, depth: int) -> None:
    x = torch.randn(1, 64)
    found = facts(chain(deviation, depth), x, dtype="float64")
    assert all("bends or jumps within every step" in f["reason"] for f in found)
    if depth * deviation < 200:  # these stretch by less than the shortest step allows
        assert found == []
    (fact,) = facts(chain(deviation, depth, nn.Linear(64, 64), Fn(leak)), x, dtype="float64")
    assert (fact.kind, fact["where"], round(fact["gap"], 2)) == (FactKind.LEAVES_COMPUTATION, "1", 0.1)


SCALARS = {
    "norm": lambda t: t / t.norm().detach(),
    "item": lambda t: t * t.abs().mean().item(),
    "spread": lambda t: t / t.std().item(),
}


@pytest.mark.parametrize("how", SCALARS)
@pytest.mark.parametrize("clean", [True, False])
def test_what_leaves_through_one_number(how: str, clean: bool) -> None:
    inside = {
        "norm": lambda t: t / t.norm(),
        "item": lambda t: t * t.abs().mean(),
        "spread": lambda t: t / t.std(),
    }
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Fn(inside[how] if clean else SCALARS[how]), nn.Flatten(), nn.Linear(8 * 1024, 20)
    )
    found = facts(model, torch.randn(1, 3, 32, 32), columns=rs.Patch(4))
    assert len(found) == (0 if clean else 1)
    assert all((f.kind, f["where"]) == (FactKind.LEAVES_COMPUTATION, "1") for f in found)


def test_a_kink_closer_than_the_shortest_step_is_no_leak() -> None:
    # the function has one slope on either side of a point that the first of the two random points hits exactly
    from rankscope.linear import secant

    x = torch.ones(1, 32)
    generator = torch.Generator().manual_seed(0x5EC)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    kink = x.double() + secant._DOUBLE.nearby * float(x.norm()) / float(noise.norm()) * noise

    def kinked(t: Tensor) -> Tensor:
        return torch.relu(t - x.to(t)) + torch.relu(t - kink.to(t))

    assert facts(nn.Sequential(Fn(kinked)), x, dtype="float64") == []
    (fact,) = facts(nn.Sequential(Fn(kinked), Fn(leak)), x, dtype="float64")
    assert (fact.kind, fact["where"], round(fact["gap"], 2)) == (FactKind.LEAVES_COMPUTATION, "1", 0.1)


def test_kinks_within_the_first_step_take_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a ResNet-50 bend the first step by 6%: a second point, and its derivative, took ten times as long."""
    from rankscope.linear import secant

    x = torch.ones(1, 32)
    moved = secant_direction(x[0])
    kink = x - 1e-6 * float(x.norm()) / float(moved.norm()) * moved  # behind the image within the first step alone

    def bent(t: Tensor) -> Tensor:
        along = ((t - kink.to(t)) * moved.to(t)).sum() / (moved.to(t) ** 2).sum()
        return t + torch.relu(-along) * moved.to(t) / 2

    (fact,) = facts(nn.Sequential(Fn(bent), Fn(leak)), x, dtype="float64")
    assert (fact.kind, fact["where"], round(fact["gap"], 2)) == (FactKind.LEAVES_COMPUTATION, "1", 0.1)
    for name in ("_nearby", "_draws"):
        monkeypatch.setattr(secant, name, lambda *_: pytest.fail("a second point was asked for"))
    assert facts(nn.Sequential(Fn(bent)), x, dtype="float64") == []


def test_the_direction_is_half_the_input() -> None:
    x = torch.randn(3, 8, 8)
    v = secant_direction(x)
    # two nearly orthogonal parts of one length: the cosine with either is 1/√2, up to 1/√192 three times over
    assert abs(float((v * x).sum() / v.norm() / x.norm()) - 0.5**0.5) < 3 / 192**0.5
    zero = secant_direction(torch.zeros(3, 8, 8))
    assert float(zero.norm()) > 1
