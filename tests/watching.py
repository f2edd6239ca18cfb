"""Small networks and the NumPy numbers that a monitor's are held to."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def net(width=6, out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, out))


def hooks(model):
    return sum(len(getattr(m, name)) for m in model.modules() for name in HOOKS)


def batches(count, samples=16, width=6):
    return torch.randn(count, samples, width, generator=torch.Generator().manual_seed(1))


def train(model, monitor, data, *, called=None):
    """Plain SGD steps, each reported to the monitor."""
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for x in data:
        loss = (called or model)(x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        monitor.step()


def rankme(rows):
    """exp of the entropy of σ/‖σ‖₁ + 1e-7, rows not centred (Garrido et al. 2023)."""
    sigma = np.linalg.svd(np.asarray(rows, np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def effective_rank(rows):
    """exp of the entropy of σ/‖σ‖₁, rows centred (Roy and Vetterli 2007)."""
    rows = np.asarray(rows, np.float64)
    sigma = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


ORACLE = {"rankme": rankme, "effective_rank": effective_rank}
# eigenvalues of the scatter are off by d·eps64 of the largest, σ by the root of that where it is smallest: 1e-7 of σ_1,
# which moves an entropy over eight of them by less than 1e-5
RTOL = 1e-5


def expect(history, step, layer, rows):
    """Both default metrics of one layer at one step against NumPy on the rows."""
    here = history[(history["step"] == step) & (history["layer"] == layer)].set_index("metric")
    assert set(here.index) == set(ORACLE)
    assert (here["samples"] == len(rows)).all()
    for name, of in ORACLE.items():
        np.testing.assert_allclose(here.loc[name, "value"], of(rows), rtol=RTOL)
