"""Planted problems that the tests of this folder share."""

from __future__ import annotations

import pytest
import torch


def _planted(samples: int = 600, classes: int = 8, *, means: float = 3.0, noise: float = 0.05, seed: int = 0):
    """Class 0 = 0.8·class 1 − 0.6·class 2 up to noise; all others have their own mean and independent noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    z = torch.randn(samples, classes, generator=g, dtype=torch.float64)
    z += means * torch.nn.functional.one_hot(labels, classes)
    z[:, 0] = 0.8 * z[:, 1] - 0.6 * z[:, 2] + noise * torch.randn(samples, generator=g, dtype=torch.float64)
    return z, labels


def _independent(samples: int, classes: int, *, means: float = 0.0, seed: int = 0):
    """Independent noise plus an arbitrary mean for every pair (label, class)."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    z = torch.randn(samples, classes, generator=g, dtype=torch.float64)
    return z + means * torch.randn(classes, classes, generator=g, dtype=torch.float64)[labels], labels


@pytest.fixture(scope="session")
def planted():
    return _planted


@pytest.fixture(scope="session")
def independent():
    return _independent
