"""Modules that keep something between calls: counters, caches, hidden states, running buffers, logs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fuzzing.choices import Choices, Shape, piece


class Counter(nn.Module):
    """A plain number that changes with every call and that the function depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, h: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(h * (0.5 + 0.25 * self.calls))


class Hidden(nn.Module):
    """The hidden state of the last call goes into the next; ``None`` at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.back = nn.Linear(width, width), nn.Linear(width, width)
        self.state: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        out = self.inner(h)
        if self.state is not None and self.state.shape == out.shape:
            out = out + self.back(self.state)
        self.state = torch.tanh(out)
        return self.state


class Cache(nn.Module):
    """A table that is filled on the first call of a size: harmless."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[Any, Tensor] = {}

    def forward(self, h: Tensor) -> Tensor:
        key = (h.shape[1:], h.dtype)
        if key not in self.tables:
            steps = torch.arange(h[0].numel(), dtype=h.dtype, device=h.device)
            self.tables[key] = torch.cos(steps).view(h.shape[1:])
        return h * (1.5 + self.tables[key])


class Running(nn.Module):
    """A running mean in a buffer, updated in evaluation mode too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", 0.1 * torch.randn(width))

    def forward(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * h.flatten(1).mean())
        return torch.tanh(h - self.mean.mean())


class Log(nn.Module):
    """Notes what it saw in a list and a dict, and computes without them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.last: dict[str, Any] = {"shape": None}

    def forward(self, h: Tensor) -> Tensor:
        self.seen.append(tuple(h.shape))
        self.last["shape"] = tuple(h.shape)
        self.features = h.detach()
        return 1.5 * h


@piece("state", 1, 2, 3, couples=True, weight=1.5)
def state(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    kinds = ["Counter", "Cache", "Running", "Log", *(["Hidden"] if len(shape) == 1 else [])]
    kind = c.one(kinds)
    c.use(f"state: {kind}")
    made = {"Counter": Counter, "Cache": Cache, "Log": Log}
    if kind in made:
        return made[kind](), shape
    return Hidden(shape[0]) if kind == "Hidden" else Running(shape[-1]), shape
