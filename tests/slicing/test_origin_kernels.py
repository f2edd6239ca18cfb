"""Kernels that only a GPU has, by calls made by hand; the oracle changes one sample and looks at every result.

A stand-in on the CPU computes what the kernel would. Every dimension of every input is taken for that of the samples in
turn: wherever a number depends on several, the rule has to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankscope.slicing.origin_call import Called
from rankscope.slicing.origin_rules import rule_of
from rankscope.slicing.origins import MIXED, NONE
from rankscope.slicing.sample_mixing import _bound

Results = Sequence[Tensor]
aten = torch.ops.aten


@dataclass
class Kernel:
    """A call of ``func``; ``samples`` says which dimension of which inputs counts samples that stay apart."""

    func: Any
    args: tuple[Any, ...]
    stand_in: Callable[..., Results]
    samples: dict[str, int]


def _recurrent(module: nn.RNNBase, *, batch_first: bool = False, sizes: Sequence[int] = (), func: Any = None) -> Kernel:
    lstm = isinstance(module, nn.LSTM)
    count = sizes[0] if sizes else 4
    x = torch.randn(sum(sizes), 3) if sizes else torch.randn(*((count, 5) if batch_first else (5, count)), 3)
    states = [torch.randn(4, count, 6) for _ in range(1 + lstm)]
    run = torch._VF.lstm if lstm else torch._VF.gru

    def stand_in(x: Tensor, hx: Tensor, cx: Tensor | None = None) -> Results:
        state = (hx, cx) if lstm else hx
        given = (x, torch.tensor(sizes), state) if sizes else (x, state)
        out, *after = run(*given, module._flat_weights, True, 2, 0.0, False, True, *([] if sizes else [batch_first]))
        cell = after[1] if lstm else torch.empty(0)
        return [out, after[0], cell, torch.empty(0, dtype=torch.uint8), torch.empty(3)]

    weights = list(module._flat_weights)
    hx, cx = states[0], states[1] if lstm else None
    named = {"hx": 1} | ({"cx": 1} if lstm else {})
    tail = (batch_first, 0.0, False, True, list(sizes), None)
    mode = 2 if lstm else 3
    args = (x, weights, 4, None, hx, cx, mode, 6, 0, 2, *tail)
    if func is aten.miopen_rnn:
        args = (x, weights, 4, hx, cx, mode, 6, 2, *tail)
    return Kernel(func or aten._cudnn_rnn, args, stand_in, named | {"input": 0 if batch_first or sizes else 1})


def _lstm_cell(gates: Tensor, hidden: Tensor, cx: Tensor, one: Tensor, two: Tensor) -> Results:
    i, f, g, o = (gates + hidden + one + two).chunk(4, 1)
    cell = f.sigmoid() * cx + i.sigmoid() * g.tanh()
    return [o.sigmoid() * cell.tanh(), cell, torch.cat([i, f, g, o], 1)]


def _gru_cell(gates: Tensor, hidden: Tensor, hx: Tensor, one: Tensor, two: Tensor) -> Results:
    (r, z, n), (a, b, c) = (gates + one).chunk(3, 1), (hidden + two).chunk(3, 1)
    reset, update = (r + a).sigmoid(), (z + b).sigmoid()
    new = (n + reset * c).tanh()
    return [new + update * (hx - new), torch.cat([reset, update, new, hx, c], 1)]


def _attention(func: Any, *, bias: bool, groups: int = 1) -> Kernel:
    q, k, v = torch.randn(3, 4, 5, 2), torch.randn(3, 4 // groups, 6, 2), torch.randn(3, 4 // groups, 6, 2)

    def stand_in(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Results:
        made = F.scaled_dot_product_attention(q, k, v, bias, enable_gqa=groups > 1)
        scores = q @ k.repeat_interleave(groups, 1).mT + (0 if bias is None else bias)
        return [made, scores.logsumexp(-1), torch.zeros(()), torch.zeros(2, dtype=torch.int64)]

    both = dict.fromkeys(("query", "key", "value"), 0)
    if bias:
        return Kernel(func, (q, k, v, torch.randn(3, 4, 5, 6), True), stand_in, both | {"attn_bias": 0})
    return Kernel(func, (q, k, v, *([] if func is FLASH else [None, True])), stand_in, both)


def _convolution(func: Any, *middle: Any, groups: int = 1, transposed: bool = False, relu: bool = False) -> Kernel:
    x, weight = torch.randn(3, 4, 5), torch.randn(4, 6 // groups, 2) if transposed else torch.randn(6, 4 // groups, 2)

    def stand_in(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Results:
        made = torch.convolution(x, weight, bias, [1], [0], [1], transposed, [0], groups)
        return [made.relu() if relu else made]

    flags = [] if relu else [False, True, True][: len(func.default._schema.arguments) - len(middle) - 6]
    lists = [[0], [0]] if transposed else [[0]]
    order = [[1], [0], [1]] if relu else [*lists, [1], [1]]
    return Kernel(func, (x, weight, *middle, *order, groups, *flags), stand_in, {"self": 0})


def _norm(func: Any, *, training: bool) -> Kernel:
    parts = [torch.rand(4) + 1 for _ in range(4)]

    def stand_in(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Results:
        made = torch.native_batch_norm(x, weight, bias, mean.clone(), variance.clone(), training, 0.1, 1e-5)
        return [*made, torch.empty(0, dtype=torch.uint8)]

    return Kernel(func, (torch.randn(3, 4, 5), *parts, training, 0.1, 1e-5), stand_in, {} if training else {"input": 0})


def _itself(func: Any, *args: Any, samples: dict[str, int]) -> Kernel:
    def stand_in(*tensors: Tensor) -> Results:
        torch.manual_seed(0)
        given = iter(tensors)
        made = func(*(next(given) if isinstance(a, Tensor) else a for a in args))
        return [made] if isinstance(made, Tensor) else made

    return Kernel(func, args, stand_in, samples)


def _weights_of(kind: type[nn.RNNBase]) -> nn.RNNBase:
    return kind(3, 6, 2, bidirectional=True)


FLASH = aten._scaled_dot_product_flash_attention
EFFICIENT, CUDNN = aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_cudnn_attention
_biases = (torch.randn(8), torch.randn(8)), (torch.randn(6), torch.randn(6))
_pair = torch.randn(3, 4), torch.randn(3, 5), torch.randn(2, 4, 5)
_plane = torch.randn(3, 4), torch.randn(4, 5), torch.randn(3, 5)
KERNELS: dict[str, Callable[[], Kernel]] = {
    "LSTM": lambda: _recurrent(_weights_of(nn.LSTM)),
    "LSTM, samples first": lambda: _recurrent(_weights_of(nn.LSTM), batch_first=True),
    "LSTM, packed": lambda: _recurrent(_weights_of(nn.LSTM), sizes=(3, 3, 2, 1)),
    "GRU": lambda: _recurrent(_weights_of(nn.GRU)),
    "GRU, samples first": lambda: _recurrent(_weights_of(nn.GRU), batch_first=True),
    "GRU, packed": lambda: _recurrent(_weights_of(nn.GRU), sizes=(3, 2)),
    "MIOpen's LSTM": lambda: _recurrent(_weights_of(nn.LSTM), batch_first=True, func=aten.miopen_rnn),
    "LSTM cell": lambda: Kernel(
        aten._thnn_fused_lstm_cell,
        (torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 2), *_biases[0]),
        _lstm_cell,
        {"input_gates": 0, "hidden_gates": 0, "cx": 0},
    ),
    "GRU cell": lambda: Kernel(
        aten._thnn_fused_gru_cell,
        (torch.randn(3, 6), torch.randn(3, 6), torch.randn(3, 2), *_biases[1]),
        _gru_cell,
        {"input_gates": 0, "hidden_gates": 0, "hx": 0},
    ),
    "flash attention": lambda: _attention(FLASH, bias=False),
    "flash attention, grouped": lambda: _attention(FLASH, bias=False, groups=2),
    "efficient attention": lambda: _attention(EFFICIENT, bias=True),
    "cuDNN's attention": lambda: _attention(CUDNN, bias=True),
    "cuDNN's attention, grouped": lambda: _attention(CUDNN, bias=False, groups=2),
    "other attention": lambda: _attention(aten._scaled_dot_product_fused_attention_overrideable, bias=False),
    "cuDNN's convolution": lambda: _convolution(aten.cudnn_convolution, groups=2),
    "cuDNN's convolution and ReLU": lambda: _convolution(aten.cudnn_convolution_relu, torch.randn(6), relu=True),
    "cuDNN's transposed convolution": lambda: _convolution(aten.cudnn_convolution_transpose, groups=2, transposed=True),
    "MIOpen's convolution": lambda: _convolution(aten.miopen_convolution, torch.randn(6)),
    "MIOpen's transposed convolution": lambda: _convolution(aten.miopen_convolution_transpose, None, transposed=True),
    "cuDNN's batch norm": lambda: _norm(aten.cudnn_batch_norm, training=False),
    "cuDNN's batch norm in training": lambda: _norm(aten.cudnn_batch_norm, training=True),
    "MIOpen's batch norm in training": lambda: _norm(aten.miopen_batch_norm, training=True),
    "RMS norm": lambda: _itself(
        aten._fused_rms_norm, torch.randn(3, 4, 5), [5], torch.randn(5), 1e-5, samples={"input": 0}
    ),
    "dropout": lambda: _itself(aten.native_dropout, torch.randn(3, 4), 0.5, True, samples={"input": 0}),
    "bilinear": lambda: _itself(
        aten._trilinear, _pair[0], _pair[2], _pair[1], [1, 3], [0], [1, 2], [2, 3], samples={"i1": 0, "i3": 0}
    ),
    "trilinear": lambda: _itself(
        aten._trilinear, _plane[0], _plane[1], _plane[2], [-1], [0], [1], [1], samples={"i1": 0, "i3": 0}
    ),
    "histogram": lambda: _itself(aten.histc, torch.randn(7), 3, -2, 2, samples={}),
    "packing": lambda: _itself(
        aten._pack_padded_sequence, torch.randn(3, 4, 2), torch.tensor([4, 2, 1]), True, samples={"input": 0}
    ),
    "unpacking": lambda: _itself(
        aten._pad_packed_sequence, torch.randn(7, 2), torch.tensor([3, 2, 1, 1]), False, 0.0, 5, samples={"data": 0}
    ),
}


def _codes_along(kernel: Kernel, name: str, dim: int) -> Tensor:
    tensor = _bound(kernel.func.default, kernel.args, {})[name]
    sizes = _bound(kernel.func.default, kernel.args, {}).get("batch_sizes")
    rows = torch.arange(tensor.shape[dim])
    if sizes is not None and len(sizes) and dim == 0 and name in ("input", "data"):  # rows by steps
        rows = torch.cat([torch.arange(int(size)) for size in sizes])
    return rows.reshape([-1 if d == dim else 1 for d in range(tensor.ndim)]).expand(tensor.shape).to(torch.int8)


def _by_rule(kernel: Kernel, owned: dict[str, Tensor], made: Results) -> list[Tensor]:
    given = _bound(kernel.func.default, kernel.args, {})

    def codes(tensor: Tensor) -> Tensor:
        none = torch.full(tensor.shape, NONE, dtype=torch.int8)
        return next((code for name, code in owned.items() if given[name] is tensor), none)

    rule = rule_of(kernel.func.default)
    assert rule is not None
    found = rule(Called(kernel.func.default, given, list(made), codes))
    found = [found] * len(made) if isinstance(found, Tensor) else list(found)
    return [one.expand(result.shape) for one, result in zip(found, made, strict=True)]


def _by_change(kernel: Kernel, owned: dict[str, Tensor], made: Results) -> list[Tensor]:
    """Of which sample each number is, by changing one after the other."""
    given = _bound(kernel.func.default, kernel.args, {})
    found = [torch.full(result.shape, NONE) for result in made]
    for sample in range(1 + max(int(code.max()) for code in owned.values())):
        changed = []
        for tensor in _numbers(kernel):
            code = next((code for name, code in owned.items() if given[name] is tensor), None)
            part = torch.zeros(()) if code is None else (code == sample) * (1 + torch.rand(tensor.shape))
            changed.append(tensor if code is None else tensor + part)
        for result, before, after in zip(found, made, kernel.stand_in(*changed), strict=True):
            moved = before != after
            result[moved] = torch.where(result[moved] == NONE, sample, MIXED)
    return found


def _numbers(kernel: Kernel) -> list[Tensor]:
    return [one for one in kernel.args if isinstance(one, Tensor)]


@pytest.mark.parametrize("name", KERNELS)
def test_every_number_is_of_the_samples_that_change_it(name: str) -> None:
    torch.manual_seed(0)
    kernel = KERNELS[name]()
    given = _bound(kernel.func.default, kernel.args, {})
    with torch.no_grad():
        made = kernel.stand_in(*_numbers(kernel))
        together = {key: _codes_along(kernel, key, dim) for key, dim in kernel.samples.items()}
        tries = [together] if together else []
        for key, value in given.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                tries += [{key: _codes_along(kernel, key, dim)} for dim in range(value.ndim)]
        for owned in tries:
            pairs = zip(_by_rule(kernel, owned, made), _by_change(kernel, owned, made), strict=True)
            for found, right in pairs:
                assert bool(((found == right) | (found == MIXED) | (right == NONE)).all()), list(owned)
        if together:
            first = _by_rule(kernel, together, made)[0]
            assert bool((first != MIXED).all())
            assert bool((first != NONE).any())


@pytest.mark.parametrize("name", ["LSTM", "LSTM, packed", "GRU, samples first"])
def test_states_after_the_last_step_are_of_their_samples(name: str) -> None:
    kernel = KERNELS[name]()
    owned = {key: _codes_along(kernel, key, dim) for key, dim in kernel.samples.items()}
    with torch.no_grad():
        made = kernel.stand_in(*_numbers(kernel))
    after = _by_rule(kernel, owned, made)[1]
    assert torch.equal(after, torch.arange(after.shape[1], dtype=torch.int8)[:, None].expand(after.shape))


def test_weights_of_samples_reach_every_result() -> None:
    kernel = KERNELS["LSTM"]()
    weights = _bound(kernel.func.default, kernel.args, {})["weight"]
    with torch.no_grad():
        made = kernel.stand_in(*_numbers(kernel))

    def codes(tensor: Tensor) -> Tensor:
        return torch.full(tensor.shape, 1 if tensor is weights[0] else NONE, dtype=torch.int8)

    rule = rule_of(kernel.func.default)
    assert rule is not None
    found = rule(Called(kernel.func.default, _bound(kernel.func.default, kernel.args, {}), list(made), codes))
    assert all(bool((one == 1).all()) for one in found[:3])


def test_lengths_that_samples_decide_are_not_followed() -> None:
    kernel = KERNELS["packing"]()
    owned = {"lengths": torch.arange(3, dtype=torch.int8)}
    with pytest.raises(NotImplementedError, match="lengths"):
        _by_rule(kernel, owned, kernel.stand_in(*_numbers(kernel)))
