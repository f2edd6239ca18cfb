"""Attention, recurrent cells and mixing over tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzzing.choices import Choices, Shape, piece
from fuzzing.plain_pieces import Do


class Attention(nn.Module):
    """Written out or fused; ``causal`` by a buffer that grows with the sequence, as language models keep it."""

    def __init__(self, width: int, *, heads: int, causal: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.fused = heads, causal, fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("past", torch.tril(torch.ones(32, 32, dtype=torch.bool)), persistent=False)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens, width = h.shape
        q, k, v = self.qkv(h).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        allowed = self.past[:tokens, :tokens] if self.causal else None
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed if mask is None else mask)
        else:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if allowed is not None:
                scores = scores.masked_fill(~allowed, float("-inf"))
            if mask is not None:
                scores = scores + mask
            mixed = scores.softmax(-1) @ v
        return h + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


@piece("attention", 2, weight=3)
def attention(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    heads = c.one([h for h in (1, 2) if shape[1] % h == 0])
    return Attention(shape[1], heads=heads, causal=c.chance(0.4), fused=c.chance(0.5)), shape


class Library(nn.Module):
    """``nn.MultiheadAttention``, which returns a pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.attention(h, h, h, need_weights=False)[0]


@piece("library attention", 2)
def library(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    if c.chance(0.4):
        return nn.TransformerEncoderLayer(
            shape[1], 1, dim_feedforward=shape[1] + 2, dropout=0.0, batch_first=True, norm_first=c.chance(0.5)
        ), shape
    return Library(shape[1]), shape


class Recurrent(nn.Module):
    """A recurrent layer of the library, of which the sequence of outputs is used."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h)[0]


@piece("recurrent layer", 2, weight=1.5)
def recurrent(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    width = c.size(3, 5)
    kind = c.one([nn.GRU, nn.LSTM, nn.RNN])
    return Recurrent(kind(shape[1], width, batch_first=True)), (shape[0], width)


class Cell(nn.Module):
    """A recurrent cell called once a token."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.cell, self.width = cell, width

    def forward(self, h: Tensor) -> Tensor:
        state = h.new_zeros(h.shape[0], self.width)
        memory = state
        out = []
        for token in h.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(token, (state, memory))
            else:
                state = self.cell(token, state)
            out.append(state)
        return torch.stack(out, 1)


@piece("recurrent cell", 2, weight=1.5)
def cell(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    width = c.size(3, 4)
    return Cell(c.one([nn.GRUCell, nn.LSTMCell, nn.RNNCell])(shape[1], width), width), (shape[0], width)


@piece("token mixing", 2, homogeneous=True)
def token_mixing(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    return Do(lambda h, mix: h + mix(h.transpose(1, 2)).transpose(1, 2), nn.Linear(shape[0], shape[0])), shape


@piece("position embedding", 2, homogeneous=True, weight=0.5)
def positions(c: Choices, shape: Shape) -> tuple[nn.Module, Shape]:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(shape[0], shape[1])

        def forward(self, h: Tensor) -> Tensor:
            return h + self.table(torch.arange(h.shape[1], device=h.device))

    return Positions(), shape
