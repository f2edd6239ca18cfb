"""Random numbers by address: a number depends on its key and its counter, not on what was drawn before it.

Integer arithmetic alone, so that every device draws the same numbers in batches of any size.
"""

from __future__ import annotations

import torch

__all__ = ["MASK", "draw", "keys", "mix", "signed"]

MASK = 0xFFFFFFFF
# Both multipliers are below 2³¹: the product with a 32-bit word stays below 2⁶³ and int64 never overflows. They are a
# low-bias pair for this shape of mixer in the search of C. Wellons (github.com/skeeto/hash-prospector).
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
_GOLDEN = 0x9E3779B9


def mix(word: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words (int64 tensors with values below 2³²) that scatters every bit; same shape.

    >>> mix(torch.tensor([0, 1, 2])).tolist()
    [0, 2261973619, 229111015]
    """
    word = word ^ (word >> 16)
    word.mul_(_FIRST).bitwise_and_(MASK)
    word.bitwise_xor_(word >> 15)
    word.mul_(_SECOND).bitwise_and_(MASK)
    return word.bitwise_xor_(word >> 15)


def keys(*parts: int | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Two 32-bit words for each address: (2, B) from integers and tensors (B,), which are broadcast.

    Two words, since a million images would share some keys of 32 bits.
    """
    words = torch.broadcast_tensors(*(torch.atleast_1d(torch.as_tensor(p, device=device)) for p in parts))
    state = torch.tensor([[0x243F6A88], [0x85A308D3]], device=device)
    for word in words:
        low, high = word & MASK, (word >> 32) & MASK
        for half in (low, high):
            state = mix((state * 33 + half + _GOLDEN) & MASK)
    return state


def draw(key: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` words for each key: (2, B) → (B, count), int64 below 2³²."""
    counters = mix(torch.arange(1, count + 1, device=key.device))
    return mix(mix((counters + key[0, :, None]) & MASK) ^ key[1, :, None])


def signed(key: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` uniform numbers of [−1, 1) for each key: (2, B) → (B, count), float32 and exact on every device."""
    return (draw(key, count) >> 8).to(torch.float32) * 2.0**-23 - 1.0
