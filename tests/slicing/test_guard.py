"""The model and the process leave a measurement as they came, whatever happened inside."""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import CASES, settled
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.slicing import fingerprints, full_precision, measuring, state

CPU = torch.device("cpu")


CALLS = [0]


class Everything(nn.Module):
    """Counts calls in a buffer, caches tensors by dtype, draws random numbers, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.head = nn.Linear(3, 4)
        self.head.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.cache: Tensor | None = None
        self.table = torch.ones(3)
        self.fail: BaseException | None = None
        self.fail_at = 0
        self.log: list[int] = []
        self.nested: dict[str, Any] = {
            "steps": [0],
            "hidden": {"h": torch.zeros(3)},
            "seen": set(),
            "array": np.ones(2),
        }
        self.queue = deque([1], maxlen=2)
        self.holder = SimpleNamespace(h=None, calls=0, inner=[torch.zeros(2)])

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.replaced = self.replaced + 1
        if self.cache is None or self.cache.dtype != x.dtype:
            self.cache = torch.full((3,), 2.0, dtype=x.dtype)
        self.table = self.table.to(x.dtype)
        self.late = torch.ones(1)
        random.random()
        np.random.rand()
        torch.rand(1)
        self.log.append(len(self.log))
        self.nested["steps"].append(1)
        self.nested["hidden"]["h"] += 1
        self.nested["hidden"]["new"] = x
        self.nested["seen"].add(1)
        self.nested["array"][0] += 1
        self.queue.append(2)
        self.holder.h, self.holder.calls = x, self.holder.calls + 1
        self.holder.inner[0] = self.holder.inner[0] + 1
        self.table.data.add_(1)
        CALLS[0] += 1  # not the model's own: it would be put back
        if self.fail is not None and CALLS[0] >= self.fail_at:
            raise self.fail
        y = self.act(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        return self.head(self.attention(y, y, y)[0].mean(1) * self.cache * self.table)


def settings() -> list[Any]:
    backends: Any = torch.backends
    return [
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        *[
            s.fp32_precision
            for s in (
                backends.cuda.matmul,
                backends.cudnn.conv,
                backends.cudnn.rnn,
                backends.mkldnn.matmul,
                backends.mkldnn.conv,
                backends.mkldnn.rnn,
            )
        ],
        backends.mha.get_fastpath_enabled(),
        backends.mkldnn.enabled,
        backends.cudnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


def snapshot(model: Everything) -> dict[str, Any]:
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "in place": model.act.inplace,
        "grads": [(p.requires_grad, p.grad is None, p._version, p.data_ptr()) for p in model.parameters()],
        "buffers": {k: (id(b), b.tolist()) for k, b in model.named_buffers()},
        "state": {k: (v.dtype, v.flatten().tolist()) for k, v in model.state_dict().items()},
        "cache": (model.cache, model.table.tolist(), model.table.dtype, hasattr(model, "late")),
        "plain": (str(model.log), str(model.nested), str(model.queue), str(model.holder)),
        "weights": [p.tolist() for p in model.parameters()],
        "settings": settings(),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()),
    }


@contextmanager
def odd_settings() -> Iterator[None]:
    """Not the defaults, so that putting defaults back would be seen."""
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    fast, flash = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.enable_flash_sdp(False)
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cuda.enable_flash_sdp(flash)


def prepared() -> Everything:
    torch.manual_seed(0)
    CALLS[0] = 0
    model = settled(Everything())
    CALLS[0] = 0
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.head.training = True  # a mode of its own
    model.norm.register_forward_hook(lambda *_: None)
    return model


FAILURES = [
    (None, 0, None),
    (ValueError("broken"), 1, rs.ModelError),
    (ValueError("broken"), 4, (ValueError, rs.RankscopeError)),
    (KeyboardInterrupt(), 1, KeyboardInterrupt),
    (KeyboardInterrupt(), 3, KeyboardInterrupt),
    (KeyboardInterrupt(), 6, KeyboardInterrupt),
]


@pytest.mark.parametrize(("failure", "at", "expected"), FAILURES)
def test_everything_is_put_back(failure: BaseException | None, at: int, expected: Any) -> None:
    model = prepared()
    model.fail, model.fail_at = failure, at
    x = torch.randn(3, 1, 5, 5, requires_grad=True)
    copy = x.detach().clone()
    with odd_settings():
        before = snapshot(model)
        if expected is None:
            rs.jacobian_rank(model, x, cut_points="all", progress=False)
        else:
            with pytest.raises(
                expected, match="broken|no way to differentiate" if isinstance(failure, ValueError) else "^$"
            ):
                rs.jacobian_rank(model, x, cut_points="all", progress=False)
        after = snapshot(model)
        rs_layers_before = snapshot(model)
        if expected is None:
            rs.layers(model, x)
            assert snapshot(model) == rs_layers_before
    for key, value in before.items():
        assert after[key] == value, key
    assert torch.equal(x, copy)
    assert x.grad is None
    assert x.requires_grad
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))


def test_the_new_interface_to_float32_precision() -> None:
    backends: Any = torch.backends
    places = [backends.mkldnn.matmul, backends.cudnn.conv]
    before = [p.fp32_precision for p in places]
    try:
        for p in places:
            p.fp32_precision = "tf32"
        with full_precision():
            assert [p.fp32_precision for p in places] == ["ieee", "ieee"]
        assert [p.fp32_precision for p in places] == ["tf32", "tf32"]
        with pytest.raises(KeyError, match="inside"), full_precision():
            raise KeyError("inside")
        assert [p.fp32_precision for p in places] == ["tf32", "tf32"]
    finally:
        for p, value in zip(places, before, strict=True):
            p.fp32_precision = value


def test_inside_the_guard() -> None:
    model = prepared()
    with odd_settings(), measuring(model, CPU):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()


class WritesItsWeights(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.mul_(2)
        return super().forward(x)


def test_weights_that_a_call_writes_into_are_as_they_were() -> None:
    model = WritesItsWeights(3, 3).eval()
    before = model.weight.detach().clone()
    profile = rs.jacobian_rank(nn.Sequential(model), torch.randn(2, 3), progress=False)
    assert torch.equal(model.weight, before)
    found = [s.sigma_max for s in profile.layers[-1].spectra if s is not None]
    expected = 2 * float(torch.linalg.matrix_norm(before.double(), 2))
    assert found == pytest.approx([expected] * 2, rel=1e-5)  # float32 products


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "scaled": lambda weight: weight.data.mul_(2),
    "negated": lambda weight: weight.data.neg_(),
    "one entry": lambda weight: weight.data[1, 2].add_(1e-6),
    "rows in another order": lambda weight: weight.data.copy_(weight.data[[1, 0, 2]]),
    "transposed": lambda weight: weight.data.copy_(weight.data.T.clone()),
    "through NumPy": lambda weight: weight.detach().numpy().fill(1.0),
}
# a write that undoes itself shows after an odd number of calls alone: it is noticed from the first call on
EARLY = [(measure, write, False) for measure in (rs.jacobian_rank, rs.feature_rank) for write in WRITES]
LATE = [(rs.feature_rank, write, True) for write in ("scaled", "one entry", "through NumPy")]


@pytest.mark.parametrize(("measure", "write", "late"), EARLY + LATE)
def test_weights_of_a_large_model_that_a_call_writes_into_are_noticed(
    measure: Any, write: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of more than 1 GiB of weights is kept; writes past the version counter show in their bits alone."""

    class Writes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not late or bool((x > 0).all()):
                WRITES[write](self.weight)
            return super().forward(x)

    monkeypatch.setattr(state, "_LARGE", 0)
    model = nn.Sequential(nn.Identity(), Writes(3, 3)).eval()
    x = -torch.ones(40, 3) + torch.arange(3) / 8
    x[-4:] *= -1  # the last batch
    options = {"batch_size": 4} if measure is rs.feature_rank else {"progress": False}
    with pytest.raises(rs.ModelError, match=r"changes '1\.weight', and of more than .* load the model again"):
        measure(model, x, **options)


def test_what_can_be_put_back_of_a_large_model_is_also_where_its_weights_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            WRITES["scaled"](self.weight)
            self.bias.data = self.bias.data * 2
            self.calls += 1
            return super().forward(x)

    monkeypatch.setattr(state, "_LARGE", 0)
    model = Counts().eval()
    before, place = model.bias.detach().clone(), model.bias.data_ptr()
    with pytest.raises(rs.ModelError, match=r"changes 'weight', and of more than .* load the model again"):
        rs.jacobian_rank(model, torch.randn(2, 3), progress=False)
    assert model.calls == 0
    assert torch.equal(model.bias, before)
    assert model.bias.data_ptr() == place


def test_weights_of_a_large_model_that_are_replaced_for_a_call_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data = self.weight.data / 2
            return super().forward(x)

    monkeypatch.setattr(state, "_LARGE", 0)
    model = Halves(3, 3).eval()
    before, place = model.weight.detach().clone(), model.weight.data_ptr()
    profile = rs.jacobian_rank(nn.Sequential(model), torch.randn(2, 3), progress=False)
    assert torch.equal(model.weight, before)
    assert model.weight.data_ptr() == place
    found = [s.sigma_max for s in profile.layers[-1].spectra if s is not None]
    expected = float(torch.linalg.matrix_norm(before.double(), 2)) / 2
    assert found == pytest.approx([expected] * 2, rel=1e-5)  # float32 products


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "form", [lambda t: t, lambda t: t.T, lambda t: t[:, ::2], lambda t: t[3:], lambda t: t[0, 0], lambda t: t[:0]]
)
def test_a_fingerprint_sees_every_bit(
    dtype: torch.dtype, form: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_CHUNK", 16)  # several chunks
    fingerprints._keys.cache_clear()
    try:
        whole = (torch.arange(77).reshape(7, 11) % 2).to(dtype)
        values = form(whole)
        first = fingerprints.fingerprint(values)
        assert first is not None
        assert torch.equal(first, fingerprints.fingerprint(values.clone()) if values.is_contiguous() else first)
        for place in np.ndindex(*values.shape):
            old = values[place].clone()
            values[place] = ~old if dtype is torch.bool else 1 - old
            assert not torch.equal(first, fingerprints.fingerprint(values)), place
            values[place] = old
        assert torch.equal(first, fingerprints.fingerprint(values))
    finally:
        fingerprints._keys.cache_clear()


class OwnMode(nn.Module):
    """Looks at its mode itself, as stochastic depth and ``functional.dropout`` do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.a(x) * 0
        return nn.functional.dropout(self.b(x), 0.5, self.training)


TRAINING = [
    nn.BatchNorm1d(4),
    nn.Dropout(0.1),
    nn.LayerNorm(4),
    nn.RReLU(),
    OwnMode(),
]


@pytest.mark.parametrize("module", TRAINING, ids=lambda m: type(m).__name__)
def test_k11_training_mode_is_measured_in_evaluation_mode(module: nn.Module) -> None:
    """One policy for every network: the ranks of ``model.eval()``, the modes put back, and the result says so."""
    model = nn.Sequential(nn.Linear(4, 4), module)
    x = torch.randn(2, 4)
    assert model.training
    found = rs.jacobian_rank(model, x, progress=False)
    assert all(m.training for m in model.modules())
    assert [f.kind for f in found.facts] == [FactKind.TRAINING_MODE]
    features = rs.feature_rank(model, torch.randn(40, 4))
    assert all(m.training for m in model.modules())
    expected = rs.jacobian_rank(model.eval(), x, progress=False)
    assert found.function_rank == expected.function_rank
    assert expected.notes == ()
    assert features is not None
    model[0].train()  # one module in a mode of its own
    assert [f.kind for f in rs.jacobian_rank(model, x, progress=False).facts] == [FactKind.TRAINING_MODE]
    assert [m.training for m in model] == [True, False]


def test_inference_mode_outside() -> None:
    case = CASES["mlp"]
    model, x = case.model(), case.sample()
    expected = rs.jacobian_rank(model, x, progress=False)
    with torch.inference_mode():
        found = rs.jacobian_rank(model, x, progress=False)
        assert torch.is_inference_mode_enabled()
        made_inside = rs.jacobian_rank(model, x + 0, progress=False)
    for other in (found, made_inside):
        assert (other.function_rank, other.method) == (expected.function_rank, expected.method)
        assert other.notes == ()


class Gated(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(6, 8), gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.first(x))


def _tangents_of_glu() -> None:
    torch.func.vmap(lambda t: torch.func.jvp(nn.functional.glu, (torch.ones(4),), (t,))[1])(torch.randn(3, 4))


@contextmanager
def _said(capfd: pytest.CaptureFixture[str], into: list[str]) -> Iterator[None]:
    """What torch warns of inside: on standard error, or through Python where a call of Python leads to it."""
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    into.append(capfd.readouterr().err + "".join(str(one.message) for one in caught))


@pytest.mark.parametrize("gate", [nn.GLU(), nn.LogSigmoid(), nn.Softplus(), nn.RReLU(), nn.Hardshrink()])
def test_torch_prints_nothing_of_operators_without_a_batching_rule(
    gate: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with _said(capfd, said):
        rs.jacobian_rank(Gated(gate).eval(), torch.randn(2, 6), progress=False)
        with measuring(Gated(gate), CPU):  # a measurement within a measurement
            rs.jacobian_rank(Gated(gate).eval(), torch.randn(2, 6), progress=False)
            _tangents_of_glu()
    assert "batching rule" not in said[0]


def test_afterwards_torch_warns_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    rs.jacobian_rank(Gated(nn.GLU()).eval(), torch.randn(1, 6), progress=False)
    with _said(capfd, said):
        _tangents_of_glu()
    assert "aten::glu_jvp" in said[0]


def test_checkpointing_is_plain_inside_and_itself_afterwards() -> None:
    """A checkpoint's second forward pass would come when converted weights have left their places."""
    model, calls = nn.Linear(3, 3), list[int]()

    def layer(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return model(x).tanh()

    def backward(*, reentrant: bool) -> int:
        calls.clear()
        with torch.enable_grad():
            x = torch.randn(1, 3, requires_grad=True)
            checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
        assert x.grad is not None
        return len(calls)

    for reentrant in (True, False):
        assert backward(reentrant=reentrant) == 2
        with measuring(model, torch.device("cpu")):
            assert backward(reentrant=reentrant) == 1
        assert backward(reentrant=reentrant) == 2
