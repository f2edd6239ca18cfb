"""Heads of every kind are measured as one function of one sample, and leave as they came; or are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rankscope import DataError, ModelError, UsageError, classification_dimension, feature_rank
from rankscope.features.called_modules import modules_of
from rankscope.features.predictor import _device_of
from rankscope.metrics import NeuralCollapse


def data(n=300, d=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator)


class Head(nn.Module):
    """A linear layer with something before it."""

    def __init__(self, before):
        super().__init__()
        torch.manual_seed(1)
        self.last, self.before, self.calls = nn.Linear(8, 4), before, 0

    def forward(self, x):
        self.calls += 1
        return self.last(self.before(self, x))


def curve(x, y, head):
    """The definition: project on k axes of the covariance, in float64, and count."""
    centred = x.double() - x.double().mean(0)
    q = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    with torch.no_grad():
        made = [head(x.double() @ q[:, :k] @ q[:, :k].T) for k in range(1, x.shape[1] + 1)]
    return [float((m.argmax(1) == y).double().mean()) for m in made]


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (lambda _, x: F.dropout(x, 0.9), "differs from call to call, in evaluation mode too"),
        (lambda _, x: x * torch.rand(8), "differs from call to call"),
        (lambda self, x: x * (self.calls % 3 - 1), "differs from call to call"),
        (lambda _, x: x - x.mean(0), "depends on the other samples of a batch"),
        (lambda _, x: x.softmax(0) * 9, "depends on the other samples of a batch"),
        (lambda _, x: F.batch_norm(x, None, None, training=True), "depends on the other samples of a batch"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_f16_modules_that_are_random_or_mix_samples_are_named(before, why, nested):
    x = data()
    head = Head(before)
    y = head.last(x).argmax(1)
    given = nn.Sequential(nn.Identity(), nn.Sequential(head)) if nested else head
    with pytest.raises(ModelError, match=why):
        classification_dimension(x, y, given, bootstrap=0)
    assert head.calls == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "before",
    [
        lambda self, x: F.dropout(x, 0.9, self.training),
        lambda self, x: x * 0 if self.training else x,
        lambda self, x: x.tanh(),
    ],
)
def test_f16_functional_dropout_and_branches_on_the_mode_are_off(before, dtype):
    x = data().to(dtype)
    head = Head(before).to(dtype).train()
    exact = copy.deepcopy(head).double().eval()
    with torch.no_grad():
        y = exact(x.double()).argmax(1)
    found = classification_dimension(x, y, head, bootstrap=0)
    np.testing.assert_allclose(found.curve, curve(x, y, exact), atol=3 / len(x))  # ties of a few samples in float32
    assert found.full_accuracy == 1.0
    assert (head.training, head.calls) == (True, 0)


def normed():
    torch.manual_seed(2)
    return nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4)).train()


class Object:
    def __init__(self, module):
        self.parts = {"head": [module]}

    def __call__(self, x):
        return self.parts["head"][0](x)


FUNCTIONS = {
    "a method": lambda m: m.forward,
    "a closure": lambda m: lambda x: m(x),
    "a closure within one": lambda m: lambda x: (lambda z: m(z))(x),
    "a partial": lambda m: partial(lambda module, x: module(x), m),
    "a default": lambda m: lambda x, module=m: module(x),
    "an object": Object,
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("role", ["head", "scorer"])
def test_f16_modules_that_a_function_calls_leave_as_they_came(kind, role):
    """Their mode is the function's own affair: it is refused as random or measured as it is, and nothing is left."""
    x, module = data(), normed()
    y = torch.arange(len(x)) % 4
    before = {name: value.clone() for name, value in module.state_dict().items()}
    head = FUNCTIONS[kind](module)
    assert modules_of(head) == [module]
    if role == "scorer":
        classification_dimension(x, y, scorer=lambda rows, labels: 1 + float((head(rows).argmax(1) == labels).sum()))
    else:
        with pytest.raises(ModelError, match="depends on the other samples of a batch"):
            classification_dimension(x, y, head)
    assert module.training
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not module._forward_pre_hooks


class Closed(Mapping):
    """A file that was closed, with the interface of a mapping."""

    def __len__(self):
        raise OSError("the file is closed")

    __iter__ = __getitem__ = values = __len__


class HalfOpen(Closed):
    def __init__(self, module):
        self.module = module

    def values(self):
        yield self.module
        raise OSError("the file is closed")


class Unloaded:
    @property
    def __dict__(self):
        raise RuntimeError("not loaded")


class Proxy:
    """Its class is that of an object which is gone."""

    @property
    def __class__(self):
        raise ReferenceError("weakly referenced object no longer exists")


class Unreadable(list):
    def __iter__(self):
        raise KeyError("no such key")


@pytest.mark.parametrize("kind", [Closed, Unloaded, Proxy, Unreadable])
def test_what_a_function_reaches_may_fail_when_it_is_looked_at(kind):
    x, module, beside = data(), nn.Linear(8, 4).train(), kind()
    with torch.no_grad():
        y = module(x).argmax(1)

    def head(rows, unused=beside):
        return module(rows)

    assert modules_of(head) == [module]
    found = classification_dimension(x, y, head, bootstrap=0)
    assert found.full_accuracy == 1.0
    assert module.training


def test_modules_before_a_failure_are_found():
    module = nn.Linear(8, 4)
    store = HalfOpen(module)
    assert modules_of(lambda rows: store) == [module]


def test_f16_what_a_function_does_to_its_module_counts_and_is_put_back():
    x, module = data(), normed()
    evaluated = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        y = evaluated(x.double()).argmax(1)
    found = classification_dimension(x, y, lambda rows: module.double().eval()(rows.double()), bootstrap=0)
    np.testing.assert_allclose(found.curve, curve(x, y, evaluated), atol=3 / len(x))
    assert found.full_accuracy == 1.0
    assert module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["1.1.bias", "1.1.weight", "0.running_mean", "1.0.bias"])
def test_f2_the_part_of_a_nested_head_that_holds_a_nan_is_named(bad, where):
    x = data()
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))).eval()
    {**dict(head.named_parameters()), **dict(head.named_buffers())}[where].data[..., 1] = bad
    with pytest.raises(DataError, match=rf"NaN or infinite logit for sample 0, and its '{where}' holds one; fix"):
        classification_dimension(x, torch.arange(len(x)) % 4, head)


class Cosine(nn.Linear):
    """A linear layer by its class, and none by what it does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Renamed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def shifted(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda _module, _args, out: 3 * out.roll(1, 1))
    return layer


def rectified(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_pre_hook(lambda _module, args: (args[0].relu(),))
    return layer


def replaced(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: -F.linear(x, layer.weight, layer.bias)  # type: ignore[method-assign]
    return layer


def loaded_weight_norm(layer: nn.Linear) -> nn.Linear:
    layer = torch.nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.copy_(
            torch.linspace(0.2, 4, len(layer.weight_g))[:, None]
        )  # its weight is made in the next call
    return layer


MORE_THAN_WEIGHTS = {
    "a class": lambda layer: Cosine(12, 5),
    "a class that adds nothing": lambda layer: Renamed(12, 5),
    "a hook": shifted,
    "a hook before": rectified,
    "a forward of its own": replaced,
    "weight norm": loaded_weight_norm,
    "parametrised": torch.nn.utils.parametrizations.weight_norm,
    "spectral norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", MORE_THAN_WEIGHTS)
def test_what_a_linear_layer_does_beside_its_weights_counts(kind: str, within: bool) -> None:
    torch.manual_seed(3)
    head = MORE_THAN_WEIGHTS[kind](nn.Linear(12, 5)).eval()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)) * np.linspace(3, 0.3, 12)

    def logits(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return head(torch.from_numpy(rows).float()).numpy()

    y = logits(x).argmax(1)
    y[:30] = np.arange(30) % 5
    axes = np.linalg.svd(x - x.mean(0))[2]
    curve = [(logits(x @ axes[:k].T @ axes[:k]).argmax(1) == y).mean() for k in range(1, 13)]
    whole = nn.Sequential(nn.Conv2d(3, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head) if within else head
    found = classification_dimension(torch.from_numpy(x).float(), y, whole, bootstrap=0)
    # one of 300 samples may be undecided in the last bits of float32
    np.testing.assert_allclose(found.curve, curve, atol=1 / 300 + 1e-12)


def test_neural_collapse_reads_no_weight_that_the_layer_does_not_compute_with() -> None:
    x, y = torch.randn(60, 12), torch.arange(60) % 5
    with pytest.raises(UsageError, match="head is a Cosine; give a plain linear layer"):
        feature_rank(x, labels=y, head=Cosine(12, 5))
    with pytest.raises(UsageError, match="head is a Cosine, which may do more than multiply by its weight"):
        NeuralCollapse(5, head=Cosine(12, 5))
    hooked = nn.Linear(12, 5)
    handle = hooked.register_forward_pre_hook(lambda module, given: None)
    remedy = r"head has forward hooks, which may change what it gives; remove them, or give its \(weight, bias\)"
    with pytest.raises(UsageError, match=remedy):
        feature_rank(x, labels=y, head=hooked)
    with pytest.raises(UsageError, match=remedy):
        NeuralCollapse(5, head=hooked)
    handle.remove()
    NeuralCollapse(5, head=hooked)
    layer = loaded_weight_norm(nn.Linear(12, 5)).eval()
    metric = NeuralCollapse(5, head=layer)
    metric.update(x, y)
    layer(x)  # makes the weight
    exact = NeuralCollapse(5, head=(layer.weight.detach(), layer.bias))
    exact.update(x, y)
    assert float(metric.compute()["nc3"]) == pytest.approx(float(exact.compute()["nc3"]), rel=1e-6)


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("training", [False, True])
def test_a_head_is_read_in_evaluation_mode_and_left_as_it_was(part: str, training: bool) -> None:
    class Doubled(nn.Module):
        """Makes another parameter in training mode, and counts there."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.tensor(0))

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            self.seen += int(self.training)
            return 2 * value if self.training else value

    torch.manual_seed(4)
    x, y = torch.randn(60, 12), torch.arange(60) % 5
    head = nn.Linear(12, 5)
    expected = (head.weight.detach().double(), head.bias.detach().double())
    predictions = (x.double() @ expected[0].T + expected[1]).argmax(1)
    torch.nn.utils.parametrize.register_parametrization(head, part, Doubled())
    head.train(training)
    held = {key: value.clone() for key, value in head.state_dict().items()}
    read = classification_dimension(x, y, head, bootstrap=0)
    assert read.full_accuracy == float((predictions == y).double().mean())
    found, exact = NeuralCollapse(5, head=head), NeuralCollapse(5, head=expected)
    for metric in (found, exact):
        metric.update(x, y)
    # the one is given in float32, the other its copy in float64
    assert {k: float(v) for k, v in found.compute().items()} == pytest.approx(
        {k: float(v) for k, v in exact.compute().items()}, rel=1e-6
    )
    assert head.training is training
    assert all(torch.equal(value, held[key]) for key, value in head.state_dict().items())


def test_a_spectral_norm_makes_no_step_when_its_weight_is_read() -> None:
    torch.manual_seed(5)
    head = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(12, 5))
    with torch.no_grad():
        head.parametrizations.weight.original.normal_()  # as loaded: its vectors belong to another weight
    held = {key: value.clone() for key, value in head.state_dict().items()}
    expected = head.eval().weight.detach().clone()
    head.train()
    x, y = torch.randn(60, 12), torch.arange(60) % 5
    found = NeuralCollapse(5, head=head)
    exact = NeuralCollapse(5, head=(expected, head.bias))
    for metric in (found, exact):
        metric.update(x, y)
    assert float(found.compute()["nc3"]) == float(exact.compute()["nc3"])
    assert all(torch.equal(value, held[key]) for key, value in head.state_dict().items())


def test_rows_go_to_where_a_head_of_buffers_alone_lies() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.eye(3))

    assert _device_of(Fixed().to("meta"), torch.ones(2, 3)).type == "meta"
    assert _device_of(Fixed(), torch.ones(2, 3, device="meta")).type == "cpu"
    assert _device_of(nn.Identity(), torch.ones(2, 3, device="meta")).type == "meta"
