"""Iterated function systems: one for each class, drawn from a seed and kept when its attractor makes a picture.

A system is 2 to 4 contractive affine maps x ↦ A x + t of the plane, each with a probability proportional to |det A|.
Its attractor is the set that the maps leave as it is. How the singular values are drawn follows Anderson and Farrell
(Improving Fractal Pre-training, WACV 2022, §3.1): a sum over maps of σ₁ + 2σ₂ between (5 + N)/2 and (6 + N)/2 gives
attractors that are neither dust nor a blot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from rankscope._base.errors import DataError
from rankscope.datasets._hashing import MASK, draw, keys

__all__ = ["MAPS", "Systems", "choose", "class_systems", "walk"]

MAPS = 4  # most maps in a system; the others are padded with maps that are never chosen
_LARGEST = 0.85  # of the singular values: a perturbed map must still contract
_STREAM = 0x1F5  # keeps the numbers of this file apart from those of the images
_CANDIDATES = 256
_WALKERS, _STEPS, _BURN_IN = 256, 32, 24
_GRID = 32
# Measured on contact sheets: less cover is dust or a line, more is a filled polygon that looks like any other.
_COVER = (0.12, 0.60)
_ASPECT = 0.45
_HALF = 0.8  # the attractor's longer half-side, in half-images


@dataclass(frozen=True)
class Systems:
    """``matrices`` (n, MAPS, 2, 2) and ``offsets`` (n, MAPS, 2) in float32, in coordinates where the image is [−1, 1]².

    ``thresholds`` (n, MAPS − 1) int64: a 32-bit word w chooses the map whose number is how many thresholds are ≤ w.
    """

    matrices: torch.Tensor
    offsets: torch.Tensor
    thresholds: torch.Tensor

    def to(self, device: torch.device) -> Systems:
        return Systems(self.matrices.to(device), self.offsets.to(device), self.thresholds.to(device))


@lru_cache(maxsize=8)
def class_systems(classes: int, seed: int) -> Systems:
    """The first ``classes`` systems of a seed, always made on the CPU in float64 (0.1 s for 20, seconds for 1,000).

    The systems of fewer classes are the first of those of more.

    >>> class_systems(3, seed=0).matrices.shape
    torch.Size([3, 4, 2, 2])
    """
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    count = 0
    for block in range(4 + 40 * classes // _CANDIDATES):
        matrices, offsets, thresholds = _candidates(block, seed)
        keep, centre, scale = _judge(matrices, offsets, thresholds, block, seed)
        matrices, offsets, thresholds = matrices[keep], offsets[keep], thresholds[keep]
        centre, scale = centre[keep], scale[keep]
        # x' = s·(x − c) turns x ↦ A x + t into x' ↦ A x' + s·(A c + t − c)
        moved = (matrices @ centre[:, None, :, None]).squeeze(-1) + offsets - centre[:, None]
        found.append((matrices, scale[:, None, None] * moved, thresholds))
        count += len(matrices)
        if count >= classes:
            matrices, offsets, thresholds = (torch.cat(part)[:classes] for part in zip(*found, strict=True))
            return Systems(matrices.to(torch.float32), offsets.to(torch.float32), thresholds)
    raise DataError(f"seed {seed} gives {count} usable systems for {classes} classes; use another seed")


def walk(matrices: torch.Tensor, offsets: torch.Tensor, choices: torch.Tensor, *, burn_in: int) -> torch.Tensor:
    """The chaos game: points (2, S − burn_in, n, W) of n systems from choices (n, S, W) of maps, on their device.

    ``matrices`` is (n, MAPS, 2, 2), ``offsets`` (n, MAPS, 2). Walkers start on the fixed point of the first map, which
    lies on the attractor: the burn-in only has to spread them.
    """
    n, steps, walkers = choices.shape
    table = torch.cat([matrices.flatten(2), offsets], dim=2).flatten(0, 1)
    rows = (choices + MAPS * torch.arange(n, device=choices.device)[:, None, None]).transpose(0, 1).flatten(1)
    a, b, c, d, e, f = table.view(n, MAPS, 6)[:, 0].unbind(1)
    det = (1 - a) * (1 - d) - b * c
    x = (((1 - d) * e + b * f) / det)[:, None].expand(n, walkers).reshape(-1)
    y = ((c * e + (1 - a) * f) / det)[:, None].expand(n, walkers).reshape(-1)
    out = torch.empty(2, steps - burn_in, n * walkers, dtype=table.dtype, device=table.device)
    for step in range(steps):
        a, b, c, d, e, f = table.index_select(0, rows[step]).unbind(1)
        x, y = torch.addcmul(torch.addcmul(e, a, x), b, y), torch.addcmul(torch.addcmul(f, c, x), d, y)
        if step >= burn_in:
            out[0, step - burn_in], out[1, step - burn_in] = x, y
    return out.view(2, steps - burn_in, n, walkers)


def choose(words: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Words (n, S, W) to the numbers of maps: how many of a system's thresholds (n, MAPS − 1) are at or below each."""
    chosen = (words >= thresholds[:, 0, None, None]).to(torch.int64)
    for k in range(1, MAPS - 1):
        chosen += words >= thresholds[:, k, None, None]
    return chosen


def _candidates(block: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrices, offsets, thresholds of those of one block's random systems whose singular values are in the range."""
    key = keys(seed, _STREAM, block, torch.arange(16 * _CANDIDATES))
    u = draw(key, 8 * MAPS).to(torch.float64).div(2.0**32).view(-1, 8, MAPS)
    maps = 2 + keys(seed, _STREAM + 1, block, torch.arange(16 * _CANDIDATES))[0] % (MAPS - 1)
    used = torch.arange(MAPS) < maps[:, None]
    large = 0.3 + (_LARGEST - 0.3) * u[:, 0]
    small = 0.1 + (large - 0.1) * u[:, 1]
    size = ((large + 2 * small) * used).sum(1)
    good = ((size >= (5 + maps) / 2) & (size <= (6 + maps) / 2)).nonzero()[:_CANDIDATES, 0]
    u, used, large, small = u[good], used[good], large[good], small[good]
    flips = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    scaled = torch.diag_embed(torch.stack([large, small * flips], dim=-1))
    matrices = _rotation(2 * math.pi * u[:, 2]) @ scaled @ _rotation(2 * math.pi * u[:, 3])
    offsets = 2 * torch.stack([u[:, 5], u[:, 6]], dim=-1) - 1
    weight = (large * small).clamp_min(0.02) * used
    share = (weight / weight.sum(1, keepdim=True)).cumsum(1)[:, :-1]
    # the last map's threshold and those of the padding are never reached
    last = torch.arange(1, MAPS) >= used.sum(1, keepdim=True)
    thresholds = torch.where(last, torch.tensor(MASK + 1), (share * 2.0**32).to(torch.int64))
    return matrices, offsets, thresholds


def _judge(
    matrices: torch.Tensor, offsets: torch.Tensor, thresholds: torch.Tensor, block: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which systems to keep (n,), and the centre (n, 2) and scale (n,) that bring each attractor into the image."""
    n = len(matrices)
    key = keys(seed, _STREAM + 2, block, torch.arange(n))
    words = draw(key, (_STEPS + _BURN_IN) * _WALKERS).view(n, _STEPS + _BURN_IN, _WALKERS)
    points = walk(matrices, offsets, choose(words, thresholds), burn_in=_BURN_IN).transpose(1, 2).flatten(2)
    # a stray spike must not shrink the rest: 0.5% of the points on each side may lie outside
    ordered = points.sort(dim=2).values
    cut = max(1, ordered.shape[2] // 200)
    low, high = ordered[:, :, cut], ordered[:, :, -cut - 1]
    sides = high - low
    longest = sides.amax(0)
    scale = 2 * _HALF / longest.clamp_min(1e-6)
    centre = (low + high) / 2
    placed = (points - centre[:, :, None]) * scale[:, None]
    cells = ((placed / _HALF + 1) * (_GRID / 2)).floor().to(torch.int64)
    inside = ((cells >= 0) & (cells < _GRID)).all(0)
    flat = cells[0].clamp(0, _GRID - 1) + _GRID * cells[1].clamp(0, _GRID - 1)
    counts = torch.zeros(n, _GRID * _GRID, dtype=torch.float64).scatter_add_(1, flat, inside.to(torch.float64))
    cover = (counts > 0).to(torch.float64).mean(1)
    # few cells that hold nearly all points look like dots, whatever the rest covers
    densest = counts.sort(dim=1, descending=True).values[:, : _GRID * _GRID // 50].sum(1) / counts.sum(1)
    keep = (cover >= _COVER[0]) & (cover <= _COVER[1]) & (sides.amin(0) >= _ASPECT * longest) & (densest < 0.6)
    return keep, centre.T, scale


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)
