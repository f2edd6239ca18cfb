"""Threads of one process take turns: results, model and the flags of the process are those of one thread alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base import turns

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


EVENTS: dict[str, threading.Event] = {}  # not in the model, whose attributes are copied and put back


class _Meets(nn.Module):
    """Waits at its first call for a second thread to come in, which may not come."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside, second = EVENTS["inside"], EVENTS["second"]
        if inside.is_set() and threading.current_thread().name == "second":
            second.set()
        if not inside.is_set():
            inside.set()
            second.wait(1)
        made: torch.Tensor = self.layers(x)
        return made


def _profile(model: nn.Module, folder: Path) -> Any:
    return rs.jacobian_rank(model, X[:3], cut_points=["layers.0", "layers.3"]).function_rank


def _collect(model: nn.Module, folder: Path) -> Any:
    return rs.collect(model, (X, Y), out=folder, batch_size=4)


def _flags() -> tuple[Any, ...]:
    return (
        torch._C._InferenceMode,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.mha.get_fastpath_enabled(),
    )


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "two models"])
@pytest.mark.parametrize("work", [(_profile, _profile), (_collect, _collect), (_profile, _collect)])
def test_two_threads_find_what_one_finds(work: tuple[Callable[..., Any], ...], shared: bool, tmp_path: Path) -> None:
    EVENTS.update(inside=threading.Event(), second=threading.Event())
    torch.manual_seed(0)
    model = _Meets().train()
    other = model
    if not shared:
        other = _Meets().train()
        other.load_state_dict(model.state_dict())
    before, weights = _flags(), {k: v.clone() for k, v in model.state_dict().items()}
    found: dict[str, Any] = {}
    first = threading.Thread(target=lambda: found.update(first=work[0](model, tmp_path / "a")), name="first")
    later = threading.Thread(target=lambda: found.update(later=work[1](other, tmp_path / "b")), name="second")
    first.start()
    assert EVENTS["inside"].wait(120)
    later.start()
    first.join()
    later.join()
    assert _flags() == before
    assert all(module.training for module in (*model.modules(), *other.modules()))
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert found["first"] == work[0](model, tmp_path / "c")
    assert found["later"] == work[1](other, tmp_path / "d")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that fork")
def test_a_process_that_forks_while_another_thread_measures_measures_too() -> None:
    held, done = threading.Event(), threading.Event()

    def holds() -> None:
        with turns.one_at_a_time():
            held.set()
            done.wait()

    thread = threading.Thread(target=holds)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:  # what the other thread held is free here
        os._exit(0 if turns._TURN.acquire(blocking=False) else 1)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
