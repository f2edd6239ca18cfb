"""Networks of a training run, and ``watch`` with settings that suit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import rankscope as rs
from rankscope._base.facts import FactKind

X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
CUTS = ["0", "2"]


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).eval()
    with torch.no_grad():
        made[2].weight[seed:] = 0  # of rank ``seed``
        made[2].bias.zero_()
    return made


def watched(folder: Path, model: Any = None, **more: Any) -> rs.WatchedRun:
    options: dict[str, Any] = {"data": X, "cut_points": CUTS, "progress": False, **more}
    return rs.watch(folder, net(4) if model is None else model, **options)


def kinds(found: rs.WatchedRun) -> set[FactKind]:
    return {fact.kind for fact in found.facts}
