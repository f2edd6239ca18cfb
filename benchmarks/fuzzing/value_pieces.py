"""Branches, sizes and loops that depend on values, and routing: what a recorded graph gets wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzzing.choices import Choices, Shape, piece
from fuzzing.plain_pieces import Do


class Branch(nn.Module):
    """One of two ways for the whole batch, by a sum over it."""

    def __init__(self, width: int, *, item: bool, modules: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width) if modules else None
        self.register_buffer("kept", (torch.arange(width) < width // 2 + 1).float())
        self.item = item

    def forward(self, h: Tensor) -> Tensor:
        positive = h.sum().item() > 0 if self.item else h.sum() > 0
        if positive:
            return self.first(h)
        return self.first(h * self.kept) if self.second is None else self.second(h)


@piece("branch on a value", 1, couples=True, weight=1.2)
def branch(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Branch(shape[-1], item=c.chance(0.5), modules=c.chance(0.4)), shape


class Loop(nn.Module):
    """As many steps as the values ask for."""

    def __init__(self, width: int, *, shrink: bool) -> None:
        super().__init__()
        self.step, self.shrink = nn.Linear(width, width), shrink

    def forward(self, h: Tensor) -> Tensor:
        if self.shrink:
            while h.norm() > 2:
                h = 0.6 * h
            return self.step(h)
        for _ in range(1 + int(h.abs().sum()) % 3):
            h = torch.tanh(self.step(h))
        return h


@piece("loop on a value", 1, couples=True, weight=0.8)
def loop(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Loop(shape[-1], shrink=c.chance(0.5)), shape


class KeepTokens(nn.Module):
    """Tokens with a positive score stay, so the size depends on values; their sum and largest go on."""

    def __init__(self, width: int, *, loop: bool) -> None:
        super().__init__()
        self.score, self.value = nn.Linear(width, 1), nn.Linear(width, width)
        self.loop = loop

    def forward(self, h: Tensor) -> Tensor:
        out = []
        for tokens in h.unbind(0):
            kept = tokens[self.score(tokens)[:, 0] > 0]
            if self.loop:
                total = torch.zeros_like(tokens[0])
                for k in range(kept.shape[0]):
                    total = total + torch.tanh(self.value(kept[k]) * (k + 1))
            else:
                total = torch.tanh(self.value(kept)).sum(0)
            out.append(tokens + total)
        return torch.stack(out)


@piece("size by values", 2, weight=1.5)
def keep_tokens(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return KeepTokens(shape[1], loop=c.chance(0.3)), shape


class TopTokens(nn.Module):
    """The k tokens of highest score are worked on, the others pass."""

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.score, self.work, self.k = nn.Linear(width, 1), nn.Linear(width, width), k

    def forward(self, h: Tensor) -> Tensor:
        score = self.score(h)[..., 0]
        chosen = score.topk(self.k, dim=1).indices[..., None].expand(-1, -1, h.shape[-1])
        worked = F.gelu(self.work(h.gather(1, chosen))) * torch.sigmoid(score.gather(1, chosen[..., 0]))[..., None]
        return h.scatter_add(1, chosen, worked)


@piece("top tokens", 2)
def top_tokens(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return TopTokens(shape[1], c.size(1, shape[0])), shape


class Experts(nn.Module):
    """Routing of vectors or tokens to experts; with ``capacity`` an expert that is full passes further tokens on."""

    def __init__(self, width: int, *, hard: bool, capacity: int | None) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.hard, self.capacity = hard, capacity

    def forward(self, h: Tensor) -> Tensor:
        rows = h.reshape(-1, h.shape[-1])
        weights = self.router(rows).softmax(-1)
        if not self.hard:
            return sum(w * e(rows) for w, e in zip(weights.split(1, -1), self.experts, strict=True)).view(h.shape)
        best, place = weights.max(-1)
        out = rows.clone()
        for k, expert in enumerate(self.experts):
            taken = (place == k).nonzero()[:, 0][: self.capacity]
            if taken.numel():
                out = out.index_add(0, taken, best[taken, None] * torch.tanh(expert(rows[taken])))
        return out.view(h.shape)


@piece("routing", 1, 2, weight=1.2)
def routing(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Experts(shape[-1], hard=c.chance(0.7), capacity=None), shape


@piece("routing with capacity", 1, 2, couples=True, weight=1.2)
def capacity(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Experts(shape[-1], hard=True, capacity=c.size(1, 3)), shape


class ExpertChoice(nn.Module):
    """Each expert takes the best rows of the whole batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 2)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        rows = h.reshape(-1, h.shape[-1])
        weights = self.router(rows).softmax(0)
        out = rows
        for k, expert in enumerate(self.experts):
            value, taken = weights[:, k].topk((len(rows) + 1) // 2)
            out = out.index_add(0, taken, value[:, None] * expert(rows[taken]))
        return out.view(h.shape)


@piece("experts choose", 1, 2, couples=True, weight=0.8)
def expert_choice(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return ExpertChoice(shape[-1]), shape


@piece("where by sample", 1, 2)
def where(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    def choose(h: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        positive = (h.flatten(1).sum(1) > 0).view(-1, *[1] * (h.ndim - 1))
        return torch.where(positive, a(h), b(h))

    return Do(choose, nn.Linear(shape[-1], shape[-1]), nn.Linear(shape[-1], shape[-1])), shape
