"""The fuzzer's truth against closed forms: it accuses the package, so it has to be right by itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing.decisions import Decisions
from fuzzing.judge import singular_values, true_rank
from fuzzing.oracle import tensors_in, truth_of
from fuzzing.outcome import Outcome
from fuzzing.unchanged import difference, picture
from torch import Tensor, nn


def test_a_linear_chain_is_the_product_of_its_weights() -> None:
    a, b = nn.Linear(5, 2), nn.Linear(2, 6)
    truth = truth_of(nn.Sequential(a, b), torch.randn(1, 5), None, {})
    product = b.weight.double() @ a.weight.double()
    torch.testing.assert_close(truth.jacobians[("", 0)][0], product, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(truth.jacobians[("0", 0)][0], a.weight.double(), rtol=0, atol=0)
    assert true_rank(singular_values(product.detach()), product.shape, 1e-6, torch.float32)[:2] == (2, 2)
    assert not truth.kink


def test_a_relu_keeps_the_rows_of_its_active_units() -> None:
    layer = nn.Linear(4, 6)
    x = torch.randn(1, 4)
    truth = truth_of(nn.Sequential(layer, nn.ReLU()), x, None, {})
    active = (layer(x) > 0).double().T
    torch.testing.assert_close(truth.jacobians[("1", 0)][0], active * layer.weight.double(), rtol=0, atol=0)


def test_a_gate_is_differentiated_by_the_product_rule() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.gate(x))

    model, x = Gated(), torch.randn(1, 3)
    weight, bias, point = model.gate.weight.double(), model.gate.bias.double(), x[0].double()
    s = torch.sigmoid(weight @ point + bias)
    expected = torch.diag(s) + (point * s * (1 - s))[:, None] * weight
    torch.testing.assert_close(truth_of(model, x, None, {}).jacobians[("", 0)][0], expected, rtol=1e-13, atol=1e-15)


def test_an_overwritten_output_is_seen_as_it_was_returned() -> None:
    layer = nn.Linear(3, 3)
    truth = truth_of(nn.Sequential(layer, nn.ReLU(inplace=True)), torch.randn(1, 3), None, {})
    torch.testing.assert_close(truth.jacobians[("0", 0)][0], layer.weight.double(), rtol=0, atol=0)


def test_every_tensor_of_every_call_and_the_state_of_the_start() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.inner = 0, nn.Linear(2, 2)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
            self.calls += 1
            return {"a": self.inner(self.inner(x)) * self.calls, "rest": [x.detach(), y]}

    model = Stateful()
    for _ in range(2):
        truth = truth_of(model, torch.randn(1, 2), "x", {"y": torch.ones(1)})
        assert truth.paths[("", 0)] == ["a", "rest.0", "rest.1"]
        square = (model.inner.weight @ model.inner.weight).double()
        torch.testing.assert_close(truth.jacobians[("", 0)][0], square, rtol=1e-6, atol=1e-7)
        assert not truth.jacobians[("", 0)][1].any()
        assert ("inner", 1) in truth.jacobians
    assert model.calls == 0


def test_no_grad_hides_nothing_and_detach_does() -> None:
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                kept = 2 * x
            return kept + x + x.detach()

    truth = truth_of(Frozen(), torch.randn(1, 3), None, {})
    torch.testing.assert_close(truth.jacobians[("", 0)][0], 3 * torch.eye(3).double(), rtol=0, atol=0)
    with torch.no_grad():
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2), nn.InstanceNorm2d(2, affine=True, track_running_stats=True)])
def test_kept_statistics_are_a_diagonal_also_for_a_transposed_gradient(norm: nn.Module) -> None:
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))
        norm.weight.copy_(torch.tensor([3.0, 5.0]))
    model = nn.Sequential(norm, nn.Flatten(2)).eval()
    tokens = nn.Sequential(model, nn.Identity())
    tokens[1].forward = lambda h: h.transpose(1, 2)
    jacobian = truth_of(tokens, torch.randn(1, 2, 2, 2), None, {}).jacobians[("", 0)][0]
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    expected = torch.diag(scale.repeat_interleave(4)).view(2, 4, 8).transpose(0, 1).reshape(8, 8)
    torch.testing.assert_close(jacobian, expected, rtol=1e-13, atol=1e-13)


def test_training_mode_is_left_and_not_differentiated() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train()
    truth = truth_of(model, torch.randn(1, 2), None, {})
    torch.testing.assert_close(truth.jacobians[("", 0)][0], model[1].weight.double(), rtol=0, atol=0)
    assert model.training


def test_a_unit_within_rounding_of_its_kink_has_no_one_truth() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1e-8]]))
    assert truth_of(model, torch.ones(1, 1), None, {}).kink
    assert not truth_of(model, torch.ones(1, 1), None, {}, torch.float64).kink
    with torch.no_grad():
        model[0].weight[1] = 0  # exactly on the kink in every precision: one derivative by convention
    assert not truth_of(model, torch.ones(1, 1), None, {}).kink


@pytest.mark.parametrize(
    "function", [torch.argmax, lambda x: x.topk(1).indices, lambda x: x > 0.5, lambda x: x.clamp(0, 0.5)]
)
def test_decisions_differ_where_the_values_choose_otherwise(function: Any) -> None:
    taken = []
    for values in ([0.1, 0.9], [0.9, 0.1], [0.2, 0.8]):
        with Decisions() as decisions:
            function(torch.tensor(values))
        taken.append(decisions)
    assert not taken[0].same_as(taken[1])
    assert taken[0].same_as(taken[2])


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e150])
def test_singular_values_at_any_scale(scale: float) -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)) * scale
    np.testing.assert_allclose(singular_values(matrix), [3 * scale, 2 * scale, 0], rtol=1e-14)
    assert true_rank(singular_values(matrix), (3, 3), "paper", torch.float64)[:2] == (2, 2)


def test_thresholds_are_those_of_the_definitions() -> None:
    eps = 2.0**-23
    sigma = np.array([1.0, 5.5 * eps, 4.5 * eps])
    assert true_rank(sigma, (9, 5), "paper", torch.float32)[0] == 2  # eps32 · min(rows, columns)
    assert true_rank(sigma, (9, 5), "torch", torch.float32)[0] == 1  # eps · max(rows, columns)
    between = np.array([1.0, 1.01 * math.sqrt(5 * eps), 0.99 * math.sqrt(5 * eps)])
    assert true_rank(between, (9, 5), "reference", torch.float32)[0] == 2
    assert true_rank(np.zeros(3), (3, 3), "paper", torch.float32)[:2] == (0, 0)


def test_what_changed_is_named() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 2)
    before = picture(model, x)
    assert not difference(before, picture(model, x))
    model[0].extra = {"count": 1}
    assert difference(before, picture(model, x)) == "new 0.extra"
    before = picture(model, x)
    model[0].extra["count"] = 2
    assert difference(before, picture(model, x)) == "0.extra"
    before = picture(model, x)
    torch.rand(1)
    with torch.no_grad():
        model[0].weight.view(-1)[0] += 1
    assert difference(before, picture(model, x)) == "0._parameters, random: torch"
    before = picture(model, x)
    model[0].register_forward_hook(lambda *_: None)
    assert "0._forward_hooks" in difference(before, picture(model, x))


def test_tensors_in_any_container_and_a_line_read_back() -> None:
    found = dict(tensors_in(({"a": torch.ones(1), "b": [torch.ones(2)]}, torch.tensor([1]))))
    assert list(found) == ["0.a", "0.b.0"]
    outcome = Outcome(3, "near", ("relu",), "ü", {"near": 2}, 0.5)
    assert Outcome.read(outcome.line()) == outcome
