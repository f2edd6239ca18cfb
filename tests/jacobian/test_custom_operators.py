"""A custom operator's backward is what its author says it is: it is compared with the operator before it is believed.

The oracle is the derivative of a leaky ReLU by hand: x ↦ x for x > 0, x/10 else, between linear layers in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.linear import custom
from rankscope.linear.custom import custom_operators
from rankscope.linear.runner import Runner
from rankscope.slicing import CallKey, measuring, read_samples
from rankscope.slicing.capture import OUTPUT


def right(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, 0.1))


def one_branch(x: Tensor) -> Tensor:
    return (x > 0).to(x)


def one_unit(x: Tensor) -> Tensor:
    return right(x) * (torch.arange(x.shape[-1]) != 3).to(x)


def far_images(x: Tensor) -> Tensor:
    return right(x) * torch.where(x.norm(dim=-1, keepdim=True) > 50, (torch.arange(x.shape[-1]) > 3).to(x), 1.0)


def slightly(x: Tensor) -> Tensor:
    return right(x) * 1.001


class Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.slope(x), None


class BothModes(torch.autograd.Function):
    """Forward and reverse mode agree, and both forget a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: Any) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.slope(x), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangents[0] * ctx.slope(x)


class Net(nn.Module):
    def __init__(self, slope: Callable[[Tensor], Tensor], operator: type = Leaky, dtype: Any = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype)
        self.slope, self.apply_operator = slope, operator.apply  # bound before anyone can replace it
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.apply_operator(self.first(x), self.slope))


def images() -> Tensor:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    x[2] *= 100  # the only one of ``far_images``
    return x


def certified(profile: rs.JacobianProfile, name: str) -> list[bool]:
    return [s is not None and s.rank().certified for s in profile[name].spectra]


@pytest.mark.parametrize("operator", [Leaky, BothModes])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_backward_is_certified_and_the_rank_is_right(operator: type, dtype: torch.dtype) -> None:
    net, x = Net(right, operator, dtype), images().to(dtype)
    profile = rs.jacobian_rank(net, x, tolerance=1e-3, progress=False)
    assert all(certified(profile, "second"))
    assert not of_kind(profile.facts, FactKind.CUSTOM_BACKWARD)
    one, two = net.first.weight.double(), net.second.weight.double()
    for row, estimate in zip(x.double(), profile["second"].spectra, strict=True):
        slope = right(one @ row + net.first.bias.double())
        values = torch.linalg.svdvals(two @ (slope[:, None] * one))
        assert estimate is not None
        assert estimate.rank(1e-3).value == int((values > 1e-3 * values[0]).sum())


@pytest.mark.parametrize("operator", [Leaky, BothModes])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [one_branch, one_unit, slightly])
def test_a_wrong_backward_ends_the_certificate(slope: Any, dtype: torch.dtype, operator: type) -> None:
    profile = rs.jacobian_rank(Net(slope, operator, dtype), images().to(dtype), progress=False)
    assert all(certified(profile, "first"))
    assert not any(certified(profile, "second"))
    (fact,) = of_kind(profile.facts, FactKind.CUSTOM_BACKWARD)
    assert (fact["where"], fact["operator"], fact.caution) == ("second", operator.__name__, True)


def test_a_backward_that_is_wrong_on_one_image_ends_the_certificate_of_that_image() -> None:
    profile = rs.jacobian_rank(Net(far_images), images(), progress=False)
    assert certified(profile, "second") == [True, True, False, True, True]


def test_inputs_exactly_at_the_kink_are_no_error() -> None:
    # the first layer sends zeros to zeros: every unit ties, and central differences there are no slope of either side
    net = Net(right)
    nn.init.zeros_(net.first.bias)
    profile = rs.jacobian_rank(net, torch.zeros(1, 8), progress=False)
    assert not of_kind(profile.facts, FactKind.CUSTOM_BACKWARD)


def test_the_full_jacobian_takes_no_wrong_backward_for_certified() -> None:
    x = images()[:1]
    for method in ("exact", "lanczos"):
        good, bad = (
            rs.jacobian_rank(Net(slope), x, columns="all", method=method, progress=False) for slope in (right, one_unit)
        )
        assert all(certified(good, "second"))
        assert not any(certified(bad, "second"))


def test_an_operator_of_the_library_of_operators() -> None:
    @torch.library.custom_op("rankscope_tests::tripled", mutates_args=())
    def tripled(x: Tensor) -> Tensor:
        return 3 * x

    tripled.register_autograd(lambda ctx, grad: 2 * grad)

    class Tripled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return tripled(x)

    profile = rs.jacobian_rank(nn.Sequential(nn.Linear(4, 4), Tripled()).eval(), torch.randn(2, 4), progress=False)
    assert certified(profile, "0") == [True, True]
    assert certified(profile, "1") == [False, False]


def test_the_operator_is_left_as_it_came() -> None:
    class Inherited(Leaky):
        pass

    before = Leaky.__dict__["forward"]
    rs.jacobian_rank(Net(right, Inherited), images()[:1], progress=False)
    rs.jacobian_rank(Net(right), images()[:1], progress=False)
    assert Leaky.__dict__["forward"] is before
    assert "forward" not in Inherited.__dict__


def test_operators_are_found_behind_others() -> None:
    x = torch.randn(3, requires_grad=True)
    plain, custom = x.sin(), Leaky.apply(x * 2, right).cos()
    assert custom_operators([plain, custom, plain + custom]) == [frozenset(), {Leaky}, {Leaky}]


class CastsDown(torch.autograd.Function):
    """A sine in float32, whatever comes in; the derivative is right up to ``factor``."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.float().sin().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return CastsDown.factor * grad * x.float().cos().to(grad.dtype)


class ThroughCasts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(CastsDown.apply(self.first(x)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.001, False)])
def test_an_operator_that_casts_down_is_judged_without_its_casts(
    dtype: str, factor: float, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CastsDown, "factor", factor)
    torch.manual_seed(0)
    profile = rs.jacobian_rank(
        ThroughCasts().eval(), torch.randn(2, 6), cut_points=["last"], dtype=dtype, progress=False
    )
    assert [s is not None and s.rank().certified for s in profile.layers[0].spectra] == [right, right]
    assert (FactKind.CUSTOM_BACKWARD in {fact.kind for fact in profile.facts}) is not right


class Weighted(torch.autograd.Function):
    """A linear layer whose backward forgets ``lost`` of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, lost: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.lost = lost
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (1 - ctx.lost) * grads[0] @ weight, None, None


class Other(Weighted):
    """The same under another name."""


@pytest.mark.parametrize("room", [0, 2 * 8 * 17 * 16, 2**30])  # one, two, all of the layers' weights and inputs
@pytest.mark.parametrize(("layer", "operator"), [(None, Weighted), (0, Weighted), (3, Other), (4, Weighted)])
def test_weights_that_operators_take_are_copied_as_there_is_room(
    room: int, layer: int | None, operator: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            for k, one in enumerate(self.layers):
                x = (operator if k == layer else Weighted).apply(x, one.weight, 1e-3 if k == layer else 0.0).tanh()
            return x

    held: list[int] = []
    take = custom._Seen.take

    def watched(self: Any, *given: Any) -> None:
        take(self, *given)
        held.append(sum(one.bytes for one in self.kept))

    monkeypatch.setattr(custom, "_ROOM", room)
    monkeypatch.setattr(custom._Seen, "take", watched)
    torch.manual_seed(0)
    model, device = Stack().eval(), torch.device("cpu")
    with measuring(model, device):
        runner = Runner(model, [CallKey(OUTPUT, -1)], device, torch.float64)
        sample = next(read_samples(model, torch.randn(1, 16))).to(device, torch.float64)
        with runner.hooked():
            wrong = custom.wrongly_derived(runner, sample)
    assert wrong == ({} if layer is None else {0: operator.__name__})
    one = 8 * 17 * 16
    assert max(held) == {0: one, 2 * one: 2 * one, 2**30: 5 * one}[room]
    assert len(held) == 5 * {0: 5, 2 * one: 3, 2**30: 1}[room], "a pass for what there was no room for"
