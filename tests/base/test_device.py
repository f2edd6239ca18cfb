"""Devices by name; the presence of a GPU is pretended, so that the tests say the same everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rankscope as rs
from rankscope._base.checks import budget_of, device_of
from rankscope._base.errors import DeviceError, UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return count


@pytest.mark.parametrize(
    ("gpus", "name", "found"),
    [
        (0, "cpu", "cpu"),
        (0, "auto", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "CUDA:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
    indirect=["gpus"],
)
def test_present(gpus: int, name: str, found: str) -> None:
    assert device_of(name) == torch.device(found)
    assert device_of(torch.device(found)) == torch.device(found)


@pytest.mark.parametrize(
    ("gpus", "name", "own", "found"),
    [
        (2, "auto", "1", "cuda:1"),
        (2, "cuda", "1", "cuda:1"),
        (2, "cuda:0", "1", "cuda:0"),
        (2, "auto", "2", "cuda:0"),  # three processes on two GPUs
        (1, "auto", "3", "cuda:0"),  # each process sees its own GPU alone
        (0, "auto", "1", "cpu"),
        (2, "cpu", "1", "cpu"),
    ],
    indirect=["gpus"],
)
def test_each_process_of_a_launcher_has_its_own_gpu(
    gpus: int, name: str, own: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", own)
    assert device_of(name) == torch.device(found)


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_a_local_rank_that_is_no_number(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(UsageError, match="the environment variable LOCAL_RANK is 'first'"):
        device_of("auto")


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_processes_divide_the_memory_of_the_device(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = budget_of(None, torch.device("cpu"), share=1e-3, most=None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    # what is free changes between the two calls, by far less than half
    assert 0.5 < 4 * budget_of(None, torch.device("cpu"), share=1e-3, most=None) / alone < 2
    assert budget_of("1 GB", torch.device("cpu")) == 2**30


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_cuda_asked_for_and_absent(gpus: int) -> None:
    with pytest.raises(DeviceError, match=r"'cuda' was asked for, but torch .* (without CUDA|no usable).*device=.cpu"):
        device_of("cuda")


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_too_high_an_index(gpus: int) -> None:
    with pytest.raises(DeviceError, match=r"'cuda:2' was asked for, .* sees 2 CUDA devices .*use device=.cuda:0"):
        device_of("cuda:2")


def test_mps_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'mps' was asked for, but this machine"):
        device_of("mps", float64=False)


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x", True, 1.5])
def test_unknown(name: Any) -> None:
    with pytest.raises(UsageError, match="is unknown; use 'cpu', 'cuda'"):
        device_of(name)


def test_mps_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UsageError, match="'mps' has no float64"):
        device_of("mps")
    assert device_of("mps", float64=False).type == "mps"


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_a_number_is_a_gpu_as_in_torch(gpus: int) -> None:
    assert device_of(1) == torch.device("cuda:1")


def test_none_is_where_the_model_is() -> None:
    class Weightless(torch.nn.Module):
        pass

    meta = torch.nn.BatchNorm1d(2, affine=False, device="meta")  # buffers alone tell the place
    assert device_of(None, torch.nn.Linear(2, 2)) == torch.device("cpu")
    assert device_of(None, meta) == torch.device("meta")
    assert device_of(None, torch.zeros(1, device="meta")) == torch.device("meta")
    assert device_of(None, Weightless()) == device_of(None) == torch.device("cpu")


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_model_that_is_no_module_is_named(device: str | None) -> None:
    with pytest.raises(rs.UsageError, match="model is the class Linear; give an instance of it"):
        rs.jacobian_rank(torch.nn.Linear, torch.zeros(1, 3), device=device)  # type: ignore[arg-type]
    with pytest.raises(rs.UsageError, match=r"model is 'resnet18'; give a torch\.nn\.Module"):
        rs.jacobian_rank("resnet18", torch.zeros(4, 3), device=device)  # type: ignore[arg-type]
