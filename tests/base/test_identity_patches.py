"""What took the place of an installed function, and the operators that a user registers, count in an identity."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.nn.qat
import torch.nn.functional as F
from torch import nn

from rankscope._base.identity import identity_of


@torch.library.custom_op("rankscope_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


_QCONFIG = torch.ao.quantization.get_default_qat_qconfig("x86")


class _Scales:
    k = 1.0

    def __call__(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return x * self.k


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


PATCHES = {
    "a function of another name": (F, "linear", F.bilinear),
    "an object": (F, "linear", _Scales()),
    "a partial function": (F, "linear", functools.partial(lambda k, x, *_: x * k, 2)),
    "another class's method": (nn.Linear, "forward", nn.Identity.forward),
    "an object for a method": (nn.Linear, "forward", _Scales()),
    "a builtin that the model calls": (torch, "relu", torch.tanh),
    "the call of every module": (nn.Module, "__call__", lambda self, *args: args[0]),
}


@pytest.mark.parametrize("name", PATCHES)
def test_what_took_the_place_of_an_installed_function_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(_Net())
    with monkeypatch.context() as patch:
        patch.setattr(*PATCHES[name])
        assert identity_of(_Net()) != before
        assert identity_of(_Net()).unreadable == ()
    assert identity_of(_Net()) == before


def test_what_a_put_object_holds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    put = _Scales()
    monkeypatch.setattr(F, "linear", put)
    before = identity_of(_Net())
    put.k = 2.0
    assert identity_of(_Net()) != before


def test_what_torch_compile_changes_in_every_module_does_not_count() -> None:
    code = (
        "import torch; from torch import nn; from rankscope._base.identity import identity_of\n"
        "net = nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(4, 2), nn.LSTM(2, 2))\n"
        "before = identity_of(net)\n"
        "torch.compile(nn.Linear(2, 2), backend='eager')(torch.ones(1, 2))\n"
        "assert identity_of(net) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class _ByNamespace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.rankscope_tests.twice(x)


class _ByAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.operator = torch.ops.rankscope_tests.twice.default

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator(x)


class _ByName(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return twice(x)


@pytest.mark.parametrize("kind", [_ByNamespace, _ByAttribute, _ByName])
@pytest.mark.parametrize("part", ["_init_fn", "_backward_fn"])
def test_the_body_of_a_users_operator_counts(kind: type[nn.Module], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(kind())
    assert before.unreadable == ()
    assert identity_of(kind()) == before
    monkeypatch.setattr(twice, part, lambda *args: args[-1] * 3)
    assert identity_of(kind()) != before


@pytest.mark.parametrize("name", ["excepthook", "displayhook", "breakpointhook"])
def test_what_the_interpreter_calls_is_no_part_of_an_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(3))  # its module works with sys
    before = identity_of(data)
    # torch.distributed.init_process_group puts a function of its own there
    monkeypatch.setattr(sys, name, lambda *values: None)
    assert identity_of(data) == before
    monkeypatch.setattr(sys, "getsizeof", lambda *values: 0)
    assert identity_of(data) != before  # what code calls counts


class _Asks(_Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.helper(x)


class _AsksByText(_Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, "helper", torch.relu)(x)


class _AsksByData(_Net):
    def __init__(self, name: Any) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name = self.name
        name = next(iter(name)) if isinstance(name, dict) else name if isinstance(name, str) else name[0]
        return getattr(self.layer, str(name))(x)


class _AsksByTuple(_Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("helper", "forward"):
            x = getattr(self.layer, name)(x)
        return x


class _Text(str):
    __slots__ = ()


ASKERS = {
    "an attribute": lambda: _AsksByData("helper"),
    "a list": lambda: _AsksByData(["helper"]),
    "a key": lambda: _AsksByData({"helper": 1}),
    "an array": lambda: _AsksByData(np.array(["helper", "other"])),
    "a text of a class of its own": lambda: _AsksByData(_Text("helper")),
    "a tuple in the code": _AsksByTuple,
}


@pytest.mark.parametrize("name", ASKERS)
def test_an_addition_counts_that_code_takes_by_a_name_from_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = ASKERS[name]()
    monkeypatch.setattr(nn.Linear, "helper", torch.sin, raising=False)
    before, x = identity_of(net), torch.ones(1, 2)
    assert before.unreadable == ()
    out = net(x)
    monkeypatch.setattr(nn.Linear, "helper", torch.cos)
    assert not torch.equal(net(x), out)
    assert identity_of(net) != before


def test_an_addition_that_no_text_names_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _AsksByData("forward")
    before = identity_of(net)
    monkeypatch.setattr(nn.Linear, "helper", torch.sin, raising=False)
    assert identity_of(net) == before


def test_what_a_package_adds_to_the_classes_of_another_counts_where_code_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = [_Net, _Asks, _AsksByText]
    before = [identity_of(kind()) for kind in kinds]
    for owner in (nn.Module, nn.Linear):
        with monkeypatch.context() as patch:
            patch.setattr(owner, "helper", F.max_pool2d, raising=False)  # an installed function of another name
            assert [identity_of(kind()) == one for kind, one in zip(kinds, before, strict=True)] == [True, False, False]
            added = identity_of(_Asks())
            patch.setattr(owner, "helper", F.max_pool1d)
            assert identity_of(_Asks()) == added  # both are "fn" of one function of torch's
            patch.setattr(owner, "helper", F.threshold)
            assert identity_of(_Asks()) != added
    assert [identity_of(kind()) for kind in kinds] == before


class _AsksTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), torch.ao.nn.qat.Linear(2, 2, qconfig=_QCONFIG)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one.helper(x) + self.two.helper(x)


def test_additions_to_two_classes_of_one_name_count_each(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (nn.Linear, torch.ao.nn.qat.Linear)
    assert {kind.__qualname__ for kind in kinds} == {"Linear"}
    for kind in kinds:
        monkeypatch.setattr(kind, "helper", torch.tan, raising=False)
    net = _AsksTwo()
    before = identity_of(net)
    for kind in kinds:
        with monkeypatch.context() as patch:
            patch.setattr(kind, "helper", torch.sin)
            assert identity_of(net) != before
    assert identity_of(net) == before


@pytest.mark.parametrize("name", ["forward", "train", "__matmul__"])
def test_what_a_package_puts_over_a_method_of_another_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(_Net())
    monkeypatch.setattr(nn.Linear, name, F.max_pool2d, raising=False)  # its own, inherited, or asked for by Python
    assert identity_of(_Net()) != before


def test_a_users_function_counts_wherever_it_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(_Net())
    monkeypatch.setattr(nn.Module, "helper", lambda self, x: x, raising=False)
    assert identity_of(_Net()) != before


def test_a_model_is_the_same_after_transformers_has_made_another(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.delattr(nn.Module, "smart_apply", raising=False)
    before = identity_of(_Net())
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=4))
    assert identity_of(_Net()) == before
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "relu", F.max_pool2d)
        assert identity_of(_Net()) != before
