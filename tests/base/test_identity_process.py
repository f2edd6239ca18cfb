"""What the process adds to an answer belongs to the question that a kept image or shard answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import rankscope as rs
from rankscope._base.errors import OutputError
from rankscope._base.facts import FactKind
from rankscope._base.identity import identity_of
from rankscope._base.identity_process import process_state


class _Rounds(nn.Module):
    """Depends on the dtype that a number without one gets: 1e-9 beside 1 is lost in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=torch.float64)
        self.head = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = (torch.ones(()) + 1e-9 - 1) * 1e9
        return self.head(self.layer(x.double() * small))


class _Doubles(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _subnormals_are_zero() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def _hook_of_every_module() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        yield
    finally:
        handle.remove()


SETTINGS = {
    "default dtype": lambda: _default(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "subnormal numbers": _subnormals_are_zero,
    "hooks of every module": _hook_of_every_module,
    "modes": _Doubles,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_unusual_setting_is_named_and_gone_with_it(name: str) -> None:
    assert process_state() == {}
    with SETTINGS[name]():
        first = process_state()
        assert [key.removesuffix(" on cpu") for key in first] == [name]
        assert process_state() == first
    assert process_state() == {}


def test_where_tensors_are_made_is_no_part_of_the_question() -> None:
    with torch.device("cpu"):
        assert process_state() == {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1 + threads % 2)
    try:
        assert process_state() == {}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["default dtype", "hooks of every module"])
def test_images_that_were_kept_under_another_setting_are_measured_again(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = _Rounds(), torch.randn(2, 3, dtype=torch.float64)

    def measure(**more: Any) -> rs.JacobianProfile:
        return rs.jacobian_rank(net, inputs, cut_points=["layer"], **more)

    kinds = lambda profile: {fact.kind for fact in profile.facts}  # noqa: E731
    first = measure(checkpoint=tmp_path)
    with SETTINGS[name]():
        other = measure(checkpoint=tmp_path)
        assert FactKind.READ_BACK not in kinds(other)
        assert FactKind.KEPT_OTHER in kinds(other)
        assert other.function_rank == measure().function_rank
        assert FactKind.READ_BACK in kinds(measure(checkpoint=tmp_path))
    assert first.function_rank == (0,)
    assert other.function_rank == ((3,) if name == "default dtype" else (0,))


def test_a_collection_is_not_continued_under_another_setting(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, data = _Rounds(), (torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2)
    rs.collect(net, data, out=tmp_path)
    with _default(torch.float64), pytest.raises(OutputError, match="holds shards of another setting"):
        rs.collect(net, data, out=tmp_path)
    assert rs.collect(net, data, out=tmp_path).resumed == 6


class _Reads(nn.Module):
    """Reads a variable of the environment, by a name that it holds."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from os import environ

        return x * float(environ.get(self.name, "1"))


def _reads_a_constant(x: torch.Tensor) -> torch.Tensor:
    import os

    return x * float(os.environ.get("MINE_SCALE", "1"))


@pytest.mark.parametrize("value", [_Reads("MINE_SCALE"), _reads_a_constant])
def test_a_variable_of_the_environment_whose_name_is_in_the_code_counts(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINE_SCALE", raising=False)
    unset = identity_of(value)
    monkeypatch.setenv("MINE_SCALE", "2")
    two = identity_of(value)
    monkeypatch.setenv("MINE_SCALE", "3")
    assert len({unset.key, two.key, identity_of(value).key}) == 3
    monkeypatch.delenv("MINE_SCALE")
    monkeypatch.setenv("MINE_OTHER", "3")
    assert identity_of(value) == unset
