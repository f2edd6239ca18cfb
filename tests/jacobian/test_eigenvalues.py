"""Eigenvalues of many Gram matrices: on the host, on the GPU, and few large ones at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from rankscope.jacobian import finish
from rankscope.jacobian.finish import Finisher


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
