"""What is written down of a function beside what torch's own tracer writes, and what only the former has to do."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operations import OPERATIONS, X3, const
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rankscope.linear.recorder import recorded

LINEAR = torch.nn.Linear(4, 4)
CELL = torch.nn.GRU(4, 3, bidirectional=True, dtype=torch.float64)
NORM = torch.nn.BatchNorm1d(3, dtype=torch.float64).train()


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return LINEAR(LINEAR(x.float()))


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return F.linear(x, torch.ones(4, 4, dtype=torch.float64)).relu().softmax(-1)


def reads(x: Tensor) -> Tensor:
    two = torch.tensor(2.0, dtype=torch.float64)
    return x * two.item() if two > 1 and torch.arange(3).sum() > 2 and x.sum() > -100 else x


def writes(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0] = 0
    y[:, 0] += 1
    y[..., 1:3].mul_(2)
    return y[torch.ones(2, dtype=torch.bool)]


def own_gradient(x: Tensor) -> Tensor:
    return x + torch.func.grad(lambda y: (y**3).sum())(x)


SPECIAL: dict[str, Callable[[Tensor], Any]] = {
    "autocast": autocast,
    "inference mode": inference,
    "reads values": reads,
    "writes in place": writes,
    "its own gradient": own_gradient,
    "a recurrent cell": lambda x: CELL(x)[0],
    "statistics of the batch": lambda x: NORM(x) * NORM.running_mean[:, None],  # type: ignore[index]
    "random numbers": lambda x: F.dropout(x) + torch.rand_like(x) + torch.randn(4, dtype=torch.float64),
    "a transform": lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1] + torch.vmap(torch.sum)(x)[:, None, None],
    "lists": lambda x: (*torch._foreach_mul([x, x + 1], 2.0), *x.unbind(0), torch.tensor([1.0]), x),
    "an attribute that is assigned": lambda x: x.data * 2 + x.view_as(x),
}
FUNCTIONS = {**dict(list(OPERATIONS.items())[::4]), **SPECIAL}


def _lines(graph: fx.Graph) -> list[tuple[str, str]]:
    """Targets and arguments, where each value has the number of its operator, and constants have none."""
    graph.eliminate_dead_code()
    number: dict[fx.Node, Any] = {}
    lines: list[tuple[str, str]] = []
    for node in graph.nodes:
        number[node] = "constant" if node.op == "get_attr" else "x" if node.op == "placeholder" else len(lines)
        if node.op in ("call_function", "output"):
            args = fx.node.map_arg((node.args, node.kwargs), lambda n: number[n])
            target = str(node.target).replace("aten.detach.", "aten.alias.")  # torch 2.11 writes one for the other
            lines.append((target, str(args)))
    return lines


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_graph_of_the_tracer_of_torch(name: str) -> None:
    function, x = FUNCTIONS[name], const(*X3)
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        function(x)  # some constants are made once
        traced = make_fx(functionalize(function, remove="mutations"), _error_on_data_dependent_ops=False)(x)
        made = recorded(function, x)
        assert _lines(made.graph) == _lines(traced.graph)
        if name not in ("random numbers", "statistics of the batch"):
            own = function(x)
            for found, expected in zip(_all(made(x)), _all(own), strict=True):
                assert torch.equal(found, expected)


def _all(out: Any) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def test_a_generator_is_no_constant() -> None:
    """The model's own is put back before each call of the model: a graph would draw on from where it is."""
    own = torch.Generator().manual_seed(0)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="takes a Generator"):
        recorded(lambda x: x * torch.rand(4, generator=own), torch.ones(3, 4))


def test_what_the_function_lets_go_of_is_freed() -> None:
    alive: list[Any] = []
    most = 0

    class Watched(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal most
            for _ in range(20):
                x = x * 2
                alive.append(weakref.ref(torch._from_functional_tensor(x)))
                most = max(most, sum(a() is not None for a in alive))
            return x

    with torch.no_grad():
        recorded(Watched(), torch.ones(3))
    assert most < 5
