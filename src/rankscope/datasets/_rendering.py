"""From perturbed systems to pictures: points of the chaos game counted per pixel, then tone, colour and noise."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from rankscope.datasets._hashing import MASK, mix, signed
from rankscope.datasets.ifs import MAPS, Systems, choose, walk

__all__ = ["MEAN", "STD", "STEPS", "perturb", "render"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS, _BURN_IN = 32, 12  # points kept of each walker, and steps before the first
_BRIGHTEST = 20.0  # this many times the density of an evenly filled image is white
_NOISE = 0.08  # of the largest noise, in the units of a picture with values 0 to 1
_GLOBAL, _COLOURS = 8, 12  # numbers drawn for the view and for the colours of an image


def perturb(
    systems: Systems,
    labels: torch.Tensor,
    key: torch.Tensor,
    *,
    perturbation: float,
    rotation: float,
    scale: float,
    shift: float,
    flip: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices (B, MAPS, 2, 2) and offsets (B, MAPS, 2) of each image of classes ``labels`` (B,) with ``key`` (2, B).

    Each map is turned, scaled and moved a little; then the whole system is seen through a similarity G x + g. That view
    is a conjugation, A ↦ G A G⁻¹ and t ↦ G t + g − G A G⁻¹ g, so that the walkers walk in the image itself.
    """
    u = signed(key, 4 * MAPS + _GLOBAL)
    own = perturbation * u[:, : 4 * MAPS].view(-1, 4, MAPS)
    matrices = _turned(own[:, 0], 1 + own[:, 1] / 2) @ systems.matrices.index_select(0, labels)
    offsets = systems.offsets.index_select(0, labels) + own[:, 2:].transpose(1, 2) / 2
    view = u[:, 4 * MAPS :]
    grown = 1 + scale * view[:, 1]
    turn = _turned(math.radians(rotation) * view[:, 0], grown)
    if flip:
        mirror = torch.where(view[:, 4] < 0, -1.0, 1.0)
        turn = turn * torch.stack([mirror, torch.ones_like(mirror)], dim=-1)[:, None, :]
    inverse = turn.transpose(1, 2) / (grown * grown)[:, None, None]  # of a similarity: Gᵀ / s²
    move = (shift * view[:, 2:4])[:, None, :]
    matrices = turn[:, None] @ matrices @ inverse[:, None]
    offsets = offsets @ turn.transpose(1, 2) + move - (matrices @ move[..., None]).squeeze(-1)
    return matrices, offsets


def render(
    matrices: torch.Tensor,
    offsets: torch.Tensor,
    thresholds: torch.Tensor,
    key: torch.Tensor,
    *,
    size: int,
    walkers: int,
    out: torch.Tensor,
) -> None:
    """Write the normalised pictures of B systems into ``out`` (B, 3, size, size)."""
    counters = mix(torch.arange(1, (STEPS + _BURN_IN) * walkers + 1, device=key.device)).view(-1, walkers)
    words = mix((counters + key[0, :, None, None]) & MASK)
    points = walk(matrices, offsets, choose(words, thresholds), burn_in=_BURN_IN)
    tone = _tone(_counts(points, size), STEPS * walkers)

    # Colours do not know the class. Background dark, figure bright; the normalisation is folded into both.
    u = signed(torch.stack([mix(key[1]), key[0]]), _COLOURS)
    unit = (u + 1) / 2
    mean, std = (torch.tensor(v, device=out.device)[:, None, None] for v in (MEAN, STD))
    ground = 0.3 * unit[:, 0:3, None, None]
    figure = 0.55 + 0.45 * unit[:, 3:6, None, None]
    axis = torch.linspace(-1, 1, size, device=out.device)
    slope = 0.1 * (u[:, 6, None, None] * axis[:, None] + u[:, 7, None, None] * axis)
    pixels = mix(torch.arange(1, size * size + 1, device=key.device)).view(size, size)
    grain = (mix((pixels + key[1, :, None, None]) & MASK) >> 8).to(torch.float32).mul_(2.0**-23).sub_(1.0)
    grain.mul_(_NOISE * unit[:, 8, None, None]).add_(slope)
    torch.addcmul((ground - mean) / std, (figure - ground) / std, tone[:, None], out=out)
    out.addcmul_(grain[:, None], 1 / std)


def _counts(points: torch.Tensor, size: int) -> torch.Tensor:
    """Points (2, K, B, W) of [−1, 1]² counted per pixel: (B, size, size) float32.

    Whole numbers below 2²⁴ add up exactly in float32, so the order of atomic additions on a GPU does not matter.
    """
    batch = points.shape[2]
    cells = points.add_(1).mul_(size / 2).floor_()
    inside = ((cells >= 0) & (cells < size)).all(0)
    columns, rows = cells.clamp_(0, size - 1).to(torch.int64)
    image = torch.arange(batch, device=points.device)[:, None] * (size * size)
    flat = rows.mul_(size).add_(columns).add_(image).view(-1)
    counts = torch.zeros(batch * size * size, device=points.device)
    counts.scatter_add_(0, flat, inside.to(torch.float32).view(-1))
    return counts.view(batch, size, size)


def _tone(counts: torch.Tensor, points: int) -> torch.Tensor:
    """Logarithmic brightness 0 to 1 of the counts, spread over 3×3 pixels, in multiples of an even density."""
    density = F.avg_pool2d(counts[:, None], 3, stride=1, padding=1)[:, 0]
    density = density.mul_(counts.shape[-1] ** 2 / points)
    return density.log1p_().mul_(1 / math.log1p(_BRIGHTEST)).clamp_(max=1.0)


def _turned(angle: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Rotations times lengths: (…) and (…) → (…, 2, 2)."""
    cos, sin = angle.cos() * length, angle.sin() * length
    return torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)
