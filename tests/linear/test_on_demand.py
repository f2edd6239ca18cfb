"""Weights that are converted for one operator at a time: the numbers of a second model, without its memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.linear import other_precision
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.on_demand import OnDemand
from rankscope.linear.runner import Runner
from rankscope.linear.substituted import Converted
from rankscope.slicing import CallKey, measuring, read_samples

CPU = torch.device("cpu")
WIDTH = 128  # 128 × 128 entries are 64 KiB in float32: smaller copies are kept


class Net(nn.Module):
    """A function of its weight matrices as it is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        for name, module in modules.items():
            self.add_module(name, module)
        self.end = nn.Identity()
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.run(self, x))


def _writes(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.a.weight.mul_(2).t().add_(0.5)  # and through a view of it
    return net.a(x).tanh()


def _writes_past_the_counter(net: Any, x: Tensor) -> Tensor:
    net.a.weight.data.mul_(2)
    return net.a(x).tanh()


def _counts(net: Any, x: Tensor) -> Tensor:
    net.norm.num_batches_tracked += 1
    net.norm.running_mean.mul_(0.9)
    return net.norm(net.a(x)) * net.norm.num_batches_tracked


def _as_numpy(net: Any, x: Tensor) -> Tensor:
    return net.a(x).tanh() * torch.from_numpy(net.b.weight.detach().numpy()).to(x.dtype).sum(0)


CASES: dict[str, Net] = {
    "linear": Net(lambda net, x: net.b(net.a(x).tanh())),
    "twice": Net(lambda net, x: net.a(net.a(x).tanh())),
    "the weight of another": Net(lambda net, x: functional.linear(net.a(x).tanh(), net.b.weight, net.a.bias)),
    "transposed": Net(lambda net, x: net.a(x).tanh() @ net.a.weight),
    "views": Net(lambda net, x: x @ net.a.weight[:, ::2].unflatten(1, (4, 16)).permute(0, 2, 1)[:, 1].unsqueeze(0)),
    "expanded": Net(lambda net, x: (x[:, None] * net.a.weight.expand(3, -1, -1)[1:]).tanh().sum(2)),
    "chunks": Net(lambda net, x: torch.cat([functional.linear(x, w).tanh() for w in net.a.weight.chunk(3)], -1)),
    "experts": Net(
        lambda net, x: (x @ net.a.weight.view(4, 32, WIDTH)[2].t()).tanh() @ net.b.weight.view(4, 32, WIDTH)[1]
    ),
    "copied rows": Net(lambda net, x: net.a.weight.t().contiguous().mul(x.unsqueeze(-1)).sum(-2)),
    "einsum": Net(lambda net, x: torch.einsum("...i,ji->...j", x, net.a.weight).sigmoid()),
    "its dtype": Net(lambda net, x: net.a(x.to(net.a.weight.dtype)) * torch.finfo(net.a.weight.dtype).eps ** 0.01),
    "its values": Net(lambda net, x: net.a(x) * net.a.weight[3, 4].item() / float(net.a.weight.norm())),
    "as numpy": Net(_as_numpy),
    "a deep copy": Net(lambda net, x: functional.linear(x, copy.deepcopy(net.a.weight.detach())).tanh()),
    "written": Net(_writes),
    "written past the counter": Net(_writes_past_the_counter),
    "buffers": Net(_counts, norm=nn.BatchNorm1d(WIDTH)),
    "weight norm": Net(lambda net, x: net.c(x), c=parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "spectral norm": Net(lambda net, x: net.c(x), c=parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "orthogonal": Net(lambda net, x: net.c(x), c=parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))),
    "attention": Net(lambda net, x: net.c(x[None], x[None], x[None])[0][0], c=nn.MultiheadAttention(WIDTH, 4)),
    "checkpointed": Net(lambda net, x: checkpoint(lambda h: net.b(net.a(h).tanh()), x, use_reentrant=False)),
    "checkpointed anew": Net(lambda net, x: checkpoint(lambda h: net.b(net.a(h).tanh()), x, use_reentrant=True)),
    "convolution": Net(lambda net, x: net.c(x.view(-1, 32, 2, 2)).relu().flatten(1), c=nn.Conv2d(32, 64, 3, padding=1)),
    "channels last": Net(
        lambda net, x: net.c(x.view(-1, 32, 2, 2)).relu().flatten(1),
        c=nn.Conv2d(32, 64, 3, padding=1).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    ),
    "a table": Net(lambda net, x: net.a(x) * net.c(torch.tensor([5, 7])).sum(0), c=nn.Embedding(200, WIDTH)),
    "a double backward": Net(lambda net, x: functional.prelu(net.a(x), net.a.bias)),
}


def both(model: nn.Module) -> tuple[Runner, Runner]:
    """All converted weights at once, and large ones on demand."""
    keys = [CallKey("end")]
    runners = [Runner(model, keys, CPU, torch.float64, room=room) for room in (None, 0)]
    assert [r.weights.on_demand for r in runners] == [False, True]
    return runners[0], runners[1]


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """By plain reverse mode, one row of a fresh float64 copy at a time."""

    def row(k: int) -> Tensor:
        point = x.double().requires_grad_()
        copy.deepcopy(model).double()(point).reshape(-1)[k].backward()  # re-entrant checkpoints refuse autograd.grad
        assert point.grad is not None
        return point.grad.reshape(-1)

    return torch.stack([row(k) for k in range(copy.deepcopy(model)(x).numel())])


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_as_with_a_second_model(name: str) -> None:
    model, x = CASES[name].eval(), torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    expected = jacobian(model, x)
    tangents = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with measuring(model, CPU):
        sample = next(read_samples(model, x)).to(CPU, torch.float64)
        whole, late = (LinearMap.of(runner, sample) for runner in both(model))
        cotangents = [torch.randn(2, len(expected), dtype=torch.float64)]
        for _ in range(2):  # the second call starts from the state that the first one found
            assert torch.equal(whole.outputs()[0], late.outputs()[0])
            assert torch.equal(whole.push(tangents)[0], late.push(tangents)[0])
            assert torch.equal(whole.pull(cotangents), late.pull(cotangents))
            assert torch.equal(whole.pull(cotangents, together=2), late.pull(cotangents, together=2))
        found = late.push(tangents)[0]
    assert whole.method is late.method
    torch.testing.assert_close(found, tangents @ expected.T, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    for key, now in model.state_dict(keep_vars=True).items():
        assert now is before[key][0]
        assert torch.equal(now, before[key][1])


def test_a_recurrent_network() -> None:
    """Its cell takes a list of weights; by plain kernels, since oneDNN's has no forward formula."""
    model, x = (
        Net(lambda net, x: net.c(x.view(1, 4, 32))[0].flatten(1), c=nn.LSTM(32, 64, batch_first=True)),
        torch.randn(1, WIDTH),
    )
    with measuring(model, CPU):
        sample = next(read_samples(model, x)).to(CPU, torch.float64)
        whole, late = (LinearMap.of(runner, sample) for runner in both(model))
        tangents = torch.randn(2, WIDTH, dtype=torch.float64)
        assert torch.equal(whole.push(tangents)[0], late.push(tangents)[0])


# ---- what they cost --------------------------------------------------------------------------------------------------


def most_bytes(function: Callable[[], object]) -> int:
    """What torch's allocator had given out at most while ``function`` ran, by torch's own profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    kineto: Any = seen.profiler
    changes = [e.nbytes() for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(changes))


def test_the_largest_layer_is_what_it_costs() -> None:
    """Forward, forward mode and reverse mode, of 12 equal layers."""
    width, layers = 256, 12
    stack = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)))
    model = Net(lambda net, x: net.c(x), c=stack).eval()
    layer = width * width * 8
    x, tangents = torch.randn(1, width), torch.randn(6, width, dtype=torch.float64)
    small = 300 * width * 8  # biases, activations and tangents: at most 300 vectors are alive at once

    def work(room: int | None) -> None:
        runner = Runner(model, [CallKey("end")], CPU, torch.float64, room=room)
        J = LinearMap.of(runner, next(read_samples(model, x)).to(CPU, torch.float64))
        J.push(tangents)
        J.pull([tangents])

    with measuring(model, CPU):
        work(0)  # whatever torch allocates once
        assert most_bytes(lambda: work(0)) < layer + small
        assert most_bytes(lambda: work(None)) > layers * layer


def test_a_part_of_a_weight_costs_that_part() -> None:
    weight = torch.randn(8, 64, WIDTH)
    late = OnDemand(weight, CPU, torch.float64)
    part, x = 64 * WIDTH * 8, torch.randn(3, WIDTH, dtype=torch.float64)
    small = 3 * (64 + WIDTH) * 8 + 1024
    assert most_bytes(lambda: x @ late[5].t()) <= part + small
    assert torch.equal(x @ late[5].t(), x @ weight.double()[5].t())
    assert torch.equal(x @ late[3:5, 7].t(), x @ weight.double()[3:5, 7].t())  # with gaps: by way of the whole
    with torch.no_grad():
        late[5, :, 3].mul_(2)
    assert torch.equal(late[5] + 0, torch.cat([weight[5, :, :3], 2 * weight[5, :, 3:4], weight[5, :, 4:]], 1).double())
    assert torch.equal(OnDemand(weight[2:], CPU, torch.float64)[3] + 0, weight[5].double())


def test_what_waits_is_decided_by_size_and_kind() -> None:
    model = nn.Module()
    model.large = nn.Linear(WIDTH, WIDTH)
    model.frozen = nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)
    model.small = nn.Linear(8, 8)
    model.again = nn.Linear(WIDTH, WIDTH, bias=False)
    model.again.weight = model.large.weight
    model.wide = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    model.pairs = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64))
    model.spread = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH)[:, ::2])
    model.register_buffer("table", torch.randn(WIDTH, WIDTH))
    model.register_buffer("numbers", torch.zeros(WIDTH, WIDTH, dtype=torch.long))
    square = WIDTH * WIDTH
    expected = 8 * (2 * square + WIDTH + 72 + square + square) + 16 * square
    made = Converted(model, CPU, torch.float64)
    assert (made.bytes, made.on_demand) == (expected, False)
    assert not Converted(model, CPU, torch.float64, expected).on_demand
    late = Converted(model, CPU, torch.float64, expected - 1)
    assert late.on_demand
    waiting = {t.full: t.made for t in late._tensors if isinstance(t.made, OnDemand)}
    assert set(waiting) == {"large.weight", "again.weight", "frozen"}
    assert waiting["large.weight"] is waiting["again.weight"]
    held = {t.full: t.made.dtype for t in late._tensors if not isinstance(t.made, OnDemand)}
    assert held["table"] == held["small.weight"] == held["large.bias"] == torch.float64
    assert held["pairs"] == torch.complex128
    assert not {"wide", "numbers"} & set(held)
    late.keep_all()
    assert not late.on_demand
    assert not any(isinstance(t.made, OnDemand) for t in late._tensors)


# ---- what a result says of it ----------------------------------------------------------------------------------------

MARK = {FactKind.WEIGHTS_ON_DEMAND, FactKind.WEIGHTS_HELD}


def measured(model: nn.Module, monkeypatch: pytest.MonkeyPatch, room: int | None) -> rs.JacobianProfile:
    """With that much room for converted weights and a budget for all else that does not depend on it."""
    plain = Runner.__init__

    def given(self: Runner, *args: Any, **options: Any) -> None:
        plain(self, *args, **{**options, "room": room if "room" in options else None})

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "__init__", given)
        x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
        return rs.jacobian_rank(model, x, cut_points="all", columns=rs.Sketch(16))


@pytest.mark.parametrize("name", ["linear", "attention", "written", "convolution", "a table"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_certificate_is_the_same(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(CASES[name]).to(dtype).eval()
    whole, late = (measured(model, monkeypatch, room) for room in (None, 0))
    for one, other in zip(whole.layers, late.layers, strict=True):
        for a, b in zip(one.spectra, other.spectra, strict=True):
            assert a is not None
            assert a == b  # singular values and error bounds, bit for bit
    said = [f for f in late.facts if f not in whole.facts]
    assert [f.kind for f in said] == [FactKind.WEIGHTS_ON_DEMAND]
    other = torch.float32 if dtype == torch.float64 else torch.float64
    assert said[0]["dtype"] == str(other)[6:]
    assert said[0]["budget"] == 0
    if name == "linear":
        assert said[0]["bytes"] == 2 * (WIDTH + 1) * WIDTH * other.itemsize


def test_a_small_budget_is_what_decides() -> None:
    model = copy.deepcopy(CASES["linear"]).eval()
    x = torch.randn(1, WIDTH)
    needed = 2 * (WIDTH + 1) * WIDTH * 8
    for budget, kinds in ((needed - 1, [FactKind.WEIGHTS_ON_DEMAND]), (needed, [])):
        profile = rs.jacobian_rank(model, x, columns=rs.Sketch(16), memory_budget=budget)
        assert [f.kind for f in profile.facts if f.kind in MARK] == kinds
        assert all(s is not None and s.error_bound < 1e-3 for layer in profile.layers for s in layer.spectra)


def _by_address(net: Any, x: Tensor) -> Tensor:
    return net.a(x) * torch.from_dlpack(torch.utils.dlpack.to_dlpack(net.b.weight.detach())).sum(0)


def test_a_weight_that_is_read_past_python_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(_by_address).eval()
    whole, late = (measured(model, monkeypatch, room) for room in (None, 0))
    assert whole.layers[-1].spectra == late.layers[-1].spectra
    (said,) = (f for f in late.facts if f.kind in MARK)
    assert said.kind is FactKind.WEIGHTS_HELD
    assert said["bytes"] == 2 * (WIDTH + 1) * WIDTH * 8
    assert said["reason"]


def _narrow(net: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise RuntimeError("there is no kernel for doubles")
    return net.a(x)


def test_a_model_that_does_not_run_in_float64_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late = measured(Net(_narrow).eval(), monkeypatch, 0)
    (said,) = (f for f in late.facts if f.kind is FactKind.NO_FLOAT64)
    assert said["reason"] == "there is no kernel for doubles"
    assert not MARK & {f.kind for f in late.facts}


def test_no_copies_are_held_for_which_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_precision, "budget_of", lambda *_, **__: 1000)
    late = measured(Net(_by_address).eval(), monkeypatch, 0)
    assert FactKind.NO_FLOAT64 in {f.kind for f in late.facts}
    assert not MARK & {f.kind for f in late.facts}


# ---- the model afterwards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_model_leaves_as_it_came_whatever_happens(error: type[BaseException]) -> None:
    def stops(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        if x.dtype == torch.float64:
            assert isinstance(net.b.weight, OnDemand)
            raise error("in the middle")
        return net.b(h)

    model = Net(stops).eval()
    before = dict(model.named_parameters())
    values = {k: v.detach().clone() for k, v in before.items()}
    with measuring(model, CPU):
        runner = both(model)[1]
        sample = next(read_samples(model, torch.randn(1, WIDTH))).to(CPU, torch.float64)
        with pytest.raises(error, match="in the middle"), runner.hooked():
            runner.outputs(sample, sample.x)
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert torch.equal(parameter, values[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_stand_in_that_outlives_its_call() -> None:
    model = Net(lambda net, x: net.a(x)).eval()
    late = both(model)[1].weights._tensors[0].made
    assert isinstance(late, OnDemand)
    view, held = late.t()[2:5], model.a.weight.detach().double()
    assert isinstance(view, OnDemand)
    assert torch.equal(view + 0, held.t()[2:5])
    assert repr(view) == "OnDemand(shape=(3, 128), dtype=torch.float64)"
    assert view.numpy().tolist() == held.t()[2:5].tolist()
    with pytest.raises(TypeError, match="memory of a weight that is converted on demand cannot be exchanged"):
        late.data = held


def test_a_copy_that_is_written_past_its_counter_is_made_again() -> None:
    """Of all copies at once: torch does not say that ``.data`` was written to."""
    model, x = CASES["written past the counter"].eval(), torch.randn(1, WIDTH)
    expected = copy.deepcopy(model).double()(x.double())
    with measuring(model, CPU):
        sample = next(read_samples(model, x)).to(CPU, torch.float64)
        runner = Runner(model, [CallKey("end")], CPU, torch.float64)
        with runner.hooked():
            for _ in range(5):
                torch.testing.assert_close(runner.outputs(sample, sample.x)[0], expected.flatten())


def test_what_is_written_past_the_counter_is_seen_at_the_first_call() -> None:
    """Making runners for both precisions is no call that could show it."""
    model, x = copy.deepcopy(CASES["written past the counter"]).eval(), torch.randn(1, WIDTH)
    expected = torch.linalg.svdvals(jacobian(model, x))
    profile = rs.jacobian_rank(model, x, cut_points=["end"])
    (spectrum,) = profile.layers[0].spectra
    assert spectrum is not None
    assert spectrum.error_bound < 1e-4
    assert (torch.as_tensor(spectrum.singular_values) - expected).abs().max() <= spectrum.error_bound
