"""A backward pass is the model's own code, which may raise anything: Reformer's asserts that it is in training mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope.spectra import Spectrum


class UnhappyError(Exception):
    """Of no library."""


class Doubled(torch.autograd.Function):
    """Twice its input; the backward pass raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, raised: Any) -> Tensor:
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.raised = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise ctx.raised("this backward pass wants train()")


class Forward(Doubled):
    """The same with a forward-mode formula."""

    @staticmethod
    def jvp(ctx: Any, grad: Tensor, _: Any) -> Tensor:
        return grad * 2


class Net(nn.Module):
    def __init__(self, function: Any, raised: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Linear(6, 5), nn.Linear(5, 4)
        self.function, self.raised = function, raised

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.function.apply(self.wide(x), self.raised))


@pytest.mark.parametrize("raised", [AssertionError, KeyError, ZeroDivisionError, UnhappyError])
def test_forward_mode_serves_where_the_backward_pass_raises(raised: Any) -> None:
    net, x = Net(Forward, raised).eval(), torch.randn(3, 6)
    truth = 2 * net.narrow.weight.detach().double().numpy() @ net.wide.weight.detach().double().numpy()
    profile = rs.jacobian_rank(net, x)
    assert profile.adjoint_error is None
    # whether the formula is that of the function cannot be seen without the other mode: no rank is certified behind it
    assert profile.reading.certified.tolist() == [[True] * 3, [False] * 3]
    for spectrum in profile["narrow"].spectra:
        assert isinstance(spectrum, Spectrum)
        # float32 products of numbers near one, five terms each
        np.testing.assert_allclose(spectrum.singular_values, np.linalg.svd(truth, compute_uv=False), rtol=1e-5)
    assert rs.linear_map(net, x[:1]).shape == (4, 6)
    assert rs.jacobian_rank(net, x[:1], columns="all", method="lanczos")["narrow"].columns == 6


@pytest.mark.parametrize("raised", [AssertionError, KeyError, ZeroDivisionError, UnhappyError])
@pytest.mark.parametrize("room", [rs.jacobian_rank, rs.linear_map])
def test_one_line_where_no_way_is_left(raised: Any, room: Any) -> None:
    net, x = Net(Doubled, raised).eval(), torch.randn(1, 6)
    with pytest.raises(rs.MeasurementError, match=r"no way to differentiate this model worked.*wants train") as told:
        room(net, x)
    assert "\n" not in str(told.value)
