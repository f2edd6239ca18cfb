"""Devices by name; the presence of a GPU is pretended, so that the tests say the same everywhere."""

from __future__ import annotations

import pytest
import torch

from rankscope._base.errors import DeviceError, UsageError
from rankscope.loading import resolve_device


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
    assert resolve_device(name) == torch.device(found)
    assert resolve_device(torch.device(found)) == torch.device(found)


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_cuda_asked_for_and_absent(gpus: int) -> None:
    with pytest.raises(DeviceError, match=r"'cuda' was asked for, but torch .* (without CUDA|no usable).*--device cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_too_high_an_index(gpus: int) -> None:
    with pytest.raises(DeviceError, match=r"'cuda:2' was asked for, .* sees 2 CUDA devices .*use --device cuda:0"):
        resolve_device("cuda:2")


def test_mps_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'mps' was asked for, but this machine"):
        resolve_device("mps")


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x"])
def test_unknown(name: str) -> None:
    with pytest.raises(UsageError, match="is unknown; use 'cpu', 'cuda'"):
        resolve_device(name)
