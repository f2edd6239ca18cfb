"""Every tangent rule against ``vmap(jvp)`` of the same function, and what in-place reuse must not do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from operations import IMAGES, OPERATIONS, X3, Function
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from rankscope.linear import traced
from rankscope.linear.layer_rules import _by_rows
from rankscope.linear.matrix_rules import _both, _both_by_rows, _rows_first
from rankscope.linear.rule import Call
from rankscope.linear.rules import _generic
from rankscope.linear.steps import linearise, push
from rankscope.linear.traced import TracedNetwork, _writes

G = torch.Generator().manual_seed(0)


def check(
    function: Callable[[Tensor], Any], x: Tensor, chunk: int = 3, *, other: Tensor | None = None
) -> TracedNetwork:
    """The traced network's tangents at ``x`` (and at another point) equal ``vmap(jvp)``'s. Returns the network."""
    expected_outputs = function(x.clone())
    count = len(expected_outputs) if isinstance(expected_outputs, tuple) else 1
    runner: Any = Function(function, count)
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        network = TracedNetwork(runner, SimpleNamespace(x=x))  # type: ignore[arg-type]
        for point in (x, x * 0.7 + 0.1 if other is None else other):
            tangents = torch.randn(chunk, *x.shape, generator=G, dtype=x.dtype)
            before = tangents.clone()
            made = linearise(network, point)
            steps, values = made.steps, made.outputs
            for value, own in zip(values, runner.outputs(None, point.clone()), strict=True):
                torch.testing.assert_close(value, own.reshape(-1), rtol=1e-12, atol=1e-12)
            for _ in range(2):  # coefficients survive the first push
                found = push(network, steps, tangents, lambda i, t: t.reshape(len(t), -1).clone())
            assert torch.equal(tangents, before), "the caller's tangents were written to"
            expected = vmap(lambda v: jvp(lambda y: runner.outputs(None, y), (point,), (v,))[1])(tangents)  # noqa: B023
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b.reshape(chunk, -1), rtol=1e-10, atol=1e-12)
    return network


def test_a_detached_value_is_a_constant_or_refused() -> None:
    """torch 2.14 traces it as an alias, which a rule for views would differentiate."""
    x = torch.randn(X3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    refused = ""
    try:
        check(lambda x: x.detach() * x, x)
    except NotImplementedError as error:
        refused = str(error)
    assert not refused or "detached" in refused


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str) -> None:
    x = torch.randn(X3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check(OPERATIONS[name], x)


@pytest.mark.parametrize("name", IMAGES)
def test_image_operation(name: str) -> None:
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check(IMAGES[name], x)


FAST = ["view", "expand", "cat with constants", "add, broadcast", "softmax, first", "layer norm", "rms norm", "linear",
        "bmm, both", "bmm, many, both", "batch norm", "attention", "copied into", "where, broadcast",
        "mean"]  # fmt: skip


@pytest.mark.parametrize("name", FAST)
def test_common_operators_have_a_rule_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[str] = []

    def counted(call: Call) -> Any:
        slow.append(str(call.node.target))
        return _generic(call)

    monkeypatch.setattr("rankscope.linear.rules._generic", counted)
    x = torch.randn(X3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check(OPERATIONS[name], x)
    assert set(slow) <= {
        "aten.slice_scatter.default",
        "aten.select_scatter.default",
        "aten.fill.Tensor",
        "aten.repeat.default",
    }


def test_where_changes_sides_from_image_to_image() -> None:
    """At the first point all of one branch is taken, so its derivative is the number 1; at the second not."""

    def function(x: Tensor) -> Tensor:
        a, b = x.sin(), x * 2
        return torch.where(x > 0, a, b) + a

    x = torch.rand(X3, dtype=torch.float64) + 0.1
    check(function, x, other=-x)
    check(
        lambda y: torch.where(y > 0, y.sin(), y * 2), x, other=x * torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    )


def test_an_operator_that_writes_is_refused() -> None:
    assert _writes(torch.ops.aten.add_.Tensor)
    assert not _writes(torch.ops.aten.add.Tensor)
    assert not _writes(operator.getitem)


def test_a_view_of_the_whole_is_no_detached_value() -> None:
    """``h[:, :3]`` of three entries is traced by the same name as ``detach()``, and has a rule."""
    x = torch.randn(X3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check(lambda x: torch.tanh(x)[:, :99, :] * 2 + x[:], x)


@pytest.mark.parametrize("shape", [(1, 7, 5), (2, 3, 4, 6)])
@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_by_thin_products_is_its_derivative(shape: tuple[int, ...], reuse: bool, affine: bool) -> None:
    """What a GPU runs, in float64 on the processor, against forward mode through torch's own layer norm."""
    generator = torch.Generator().manual_seed(3)
    x = 3 + torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.rand(shape[-1], generator=generator, dtype=torch.float64) if affine else None
    tangents = torch.randn(4, *shape, generator=generator, dtype=torch.float64)

    def norm(y: Tensor) -> Tensor:
        return nn.functional.layer_norm(y, shape[-1:], weight, eps=1e-3)

    expected = torch.stack([torch.func.jvp(norm, (x,), (t,))[1] for t in tangents])
    rstd = (x.var(-1, unbiased=False, keepdim=True) + 1e-3).rsqrt()
    gain = rstd if weight is None else rstd * weight
    given = tangents.clone()
    found = _by_rows((x - x.mean(-1, keepdim=True)) * rstd, gain)(given, reuse)
    # sums of at most six terms, of entries below ten
    torch.testing.assert_close(found, expected, rtol=0, atol=100 * torch.finfo(torch.float64).eps)
    assert (found.data_ptr() == given.data_ptr()) == reuse
    assert reuse or torch.equal(given, tangents)


def _in_memory(order: tuple[int, ...], *sizes: int) -> Tensor:
    """Random numbers of these sizes whose memory runs through the dimensions in this order, with gaps at the end."""
    generator = torch.Generator().manual_seed(sum(sizes))
    held = torch.randn(*(sizes[d] for d in order[:-1]), sizes[order[-1]] + 2, generator=generator, dtype=torch.float64)
    return held[..., : sizes[order[-1]]].permute([order.index(d) for d in range(len(order))])


@pytest.mark.parametrize("left", [(0, 1, 2, 3), (1, 2, 0, 3), (0, 2, 1, 3)])
@pytest.mark.parametrize("right", [(0, 1, 2, 3), (0, 1, 3, 2), (1, 3, 0, 2), (1, 2, 0, 3)])
def test_products_by_rows_do_not_depend_on_the_layout(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """What a GPU runs, in float64 on the processor, against one sum over all indices."""
    chunk, batch, n, k, m = 5, 3, 4, 6, 7
    one, other = _in_memory(left, chunk, batch, n, k), _in_memory(right, chunk, batch, k, m)
    a, b = _in_memory((0, 1, 2), batch, n, k), _in_memory((0, 2, 1), batch, k, m)
    expected = torch.einsum("cbnk,bkm->cbnm", one, b) + torch.einsum("bnk,cbkm->cbnm", a, other)
    # two sums of six products of entries below five
    torch.testing.assert_close(
        _both_by_rows(one, b, a, other), expected, rtol=0, atol=1000 * torch.finfo(torch.float64).eps
    )
    torch.testing.assert_close(_both(one, b, a, other), expected, rtol=0, atol=1000 * torch.finfo(torch.float64).eps)


def test_which_layouts_join() -> None:
    plain = torch.zeros(5, 3, 4, 6)
    heads = torch.zeros(3, 4, 5, 6).permute(2, 0, 1, 3)
    keys = torch.zeros(5, 6, 3, 8).permute(0, 2, 3, 1)  # as k.transpose(-2, -1) of heads cut from one product
    assert not _rows_first(plain, torch.zeros(5, 3, 6, 7))
    assert _rows_first(heads, torch.zeros(5, 3, 6, 7))
    assert _rows_first(plain, keys)


def test_a_write_of_no_number_needs_no_second_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of a map of channels that lie last, as Swin's is, ends with ``as_strided_``."""
    traces = []
    plain = traced.recorded

    def counted(*args: Any) -> Any:
        traces.append(plain(*args))
        return traces[-1]

    monkeypatch.setattr(traced, "recorded", counted)
    x = torch.randn(1, 4, 5, 3, generator=G, dtype=torch.float64)
    check(lambda t: nn.functional.adaptive_avg_pool2d(t.tanh().permute(0, 3, 1, 2), 1).flatten(1), x)
    assert len(traces) == 1
