"""Eigenvalues of many Gram matrices: on the host, on the GPU, and few large ones at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

import rankscope as rs
from rankscope.jacobian import finish
from rankscope.jacobian.finish import Finisher
from rankscope.jacobian.reference import Reference
from rankscope.jacobian.sweep import SweepResult


def gram(size: int, seed: int) -> Tensor:
    factor = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T


@pytest.mark.parametrize("cores", [0, 2])
@pytest.mark.parametrize("bytes_together", [2**30, 2 * 8 * 30 * 30])
def test_each_matrix_gets_its_own(cores: int, bytes_together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    by_device: list[int] = []
    device = finish._eigenvalues

    def watched(grams: list[Tensor]) -> list[Tensor | None]:
        by_device.extend(len(g) for g in grams)
        return device(grams)

    monkeypatch.setattr(finish, "_LARGE", 30)
    monkeypatch.setattr(finish, "_STACK", bytes_together)
    monkeypatch.setattr(finish, "_eigenvalues", watched)
    monkeypatch.setattr(finish, "_on_the_host", list)  # pinned memory needs a GPU
    sizes = [30, 7, 30, 0, 30, 12, 30, 30, 7]
    grams = [gram(size, seed) for seed, size in enumerate(sizes)]
    grams[2] = grams[2] * torch.nan
    grams[5] = grams[5] * torch.nan
    finisher = Finisher(torch.device("cpu"), torch.float32)
    finisher._solvers = ThreadPoolExecutor(cores) if cores else None
    found = finisher._eigenvalues(grams)
    finisher.close()
    if finisher._solvers is not None:
        finisher._solvers.shutdown()
    assert [k for k, values in enumerate(found) if values is None] == [2, 5]
    for matrix, values in zip(grams, found, strict=True):
        if values is not None:
            np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix.numpy()), rtol=1e-9, atol=1e-9)
    assert by_device == ([30] * 5 if cores else sizes)


class Background(Finisher):
    """Works in threads, as beside a GPU."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32)
        self._pool, self._early = ThreadPoolExecutor(1), ThreadPoolExecutor(1)


def swept(grams: list[Tensor]) -> SweepResult:
    sizes = [len(g) for g in grams]
    empty: list[Tensor] = []
    return SweepResult(
        [[g] for g in grams], [[False]] * len(grams), [[n] for n in sizes], sizes, [[0]] * len(grams), empty, empty
    )


def test_what_was_begun_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = finish._eigenvalues
    monkeypatch.setattr(finish, "_eigenvalues", lambda grams: calls.append(len(grams)) or plain(grams))
    grams = [gram(size, size) for size in (5, 8, 3)]
    finisher = Background()
    results = [swept(grams) for _ in range(4)]
    for result in results[:3]:  # one thread each: what finishes a batch may wait for what was begun of it
        finisher.begin(result)
    found = [finisher.submit(result, None, None, 1, 8)()[0].spectra for result in results]
    finisher.close()
    assert calls == [3] * 4
    for spectra in found:
        for spectrum, matrix in zip(spectra, grams, strict=True):
            assert spectrum is not None
            expected = np.sqrt(np.linalg.eigvalsh(matrix.numpy())[::-1])
            np.testing.assert_allclose(spectrum.singular_values, expected, rtol=1e-6, atol=1e-6)


def test_an_error_in_what_was_begun_is_told() -> None:
    finisher = Background()
    result = swept([torch.zeros(2, 3)])
    finisher.begin(result)
    with pytest.raises(RuntimeError, match="square"):
        finisher.submit(result, None, None, 1, 3)()
    finisher.close()


def test_one_image_is_decomposed_while_it_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    begin, certify = Finisher.begin, Reference.certify
    monkeypatch.setattr(Finisher, "begin", lambda *a: order.append("begin") or begin(*a))
    monkeypatch.setattr(Reference, "certify", lambda *a: order.append("certify") or certify(*a))
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()).eval()
    rs.jacobian_rank(net, torch.randn(1, 4), progress=False)
    assert order == ["begin", "certify"]
    order.clear()
    rs.jacobian_rank(net, torch.randn(3, 4), progress=False)  # together, which may yet fail
    assert order == ["certify"]
