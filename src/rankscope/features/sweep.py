"""Accuracy at every number of components, three ways: linear head, any head, any score. All exact at each k."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from rankscope._base.progress import Reporter
from rankscope.features.accuracy_curve import RankSweep, rank_of_label

__all__ = ["Counts", "Resampling", "first_crossing", "sweep_callable", "sweep_linear"]

_CHUNK = 128  # components between looks at whether the crossing is reached


@dataclass(frozen=True, eq=False)
class Resampling:
    """Bootstrap counts: how often each sample occurs in each of R resamples (R, N), and what it counts (N,)."""

    weights: torch.Tensor
    each: torch.Tensor

    @classmethod
    def draw(
        cls,
        replicates: int,
        samples: int,
        seed: int,
        device: torch.device,
        each: torch.Tensor | None = None,
        within: torch.Tensor | None = None,
    ) -> Resampling:
        """R resamples of N samples with replacement, from the seed alone (the same on every device).

        With ``within`` (labels) every class keeps its number of samples, as a balanced accuracy needs.
        """
        generator = torch.Generator().manual_seed(seed)
        each = torch.ones(samples, dtype=torch.float64, device=device) if each is None else each
        rows = [_drawn(samples, generator, within) for _ in range(replicates)]
        stacked = (torch.stack(rows) if rows else torch.zeros(0, samples)).to(device, torch.float64)
        plain = bool((each == 1).all())
        return cls((stacked if plain else stacked * each).to(torch.float32 if plain else torch.float64), each)

    def counted(self, right: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """What the right samples count together: (N, m) Booleans to (m,) float64."""
        return self.each[rows] @ right.to(torch.float64)

    def total(self, right: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """The same in each resample, (R, m) float64."""
        return (self.weights[:, rows] @ right.to(self.weights.dtype)).double()


def _drawn(samples: int, generator: torch.Generator, within: torch.Tensor | None) -> torch.Tensor:
    if within is None:
        return torch.bincount(torch.randint(samples, (samples,), generator=generator), minlength=samples)
    counts = torch.zeros(samples, dtype=torch.int64)
    labels = within.cpu()
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        counts[rows] = torch.bincount(torch.randint(len(rows), (len(rows),), generator=generator), minlength=len(rows))
    return counts


@dataclass(frozen=True, eq=False)
class Counts:
    """Correct samples after k = 1 … K components: (K,) top-1 and top-5, and top-1 in each resample (R, K); float64."""

    top1: torch.Tensor
    top5: torch.Tensor
    resampled: torch.Tensor


def first_crossing(counts: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
    """Least k (from 1) with counts ≥ needed along the last dimension; 0 where there is none.

    >>> first_crossing(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), torch.tensor([2.5]))
    tensor([2])
    """
    reached = counts >= needed[..., None] - 1e-9
    return torch.where(reached.any(-1), reached.to(torch.uint8).argmax(-1) + 1, 0)


def _enough(parts: list[Counts], needed: float, needed_resampled: torch.Tensor) -> bool:
    """Whether the crossing, and those of 98% of the resamples, have been reached."""
    if not bool((torch.cat([p.top1 for p in parts]) >= needed - 1e-9).any()):
        return False
    crossed = first_crossing(torch.cat([p.resampled for p in parts], 1), needed_resampled) > 0
    return not len(crossed) or float(crossed.double().mean()) >= 0.98


def _join(parts: list[Counts]) -> Counts:
    return Counts(
        torch.cat([p.top1 for p in parts]),
        torch.cat([p.top5 for p in parts]),
        torch.cat([p.resampled for p in parts], 1),
    )


def sweep_linear(
    sweep: RankSweep,
    axes: torch.Tensor,
    folded: torch.Tensor,
    resampling: Resampling,
    *,
    stop: tuple[float, torch.Tensor] | None = None,
    report: Reporter | None = None,
) -> Counts:
    """Counts for a linear head, chunk by chunk of components; ``stop`` = (needed, needed in each resample) ends early.

    On a CPU the tiles of samples run on as many threads as torch may use, each with one: no barriers between them.
    """
    device = sweep.features.device
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    parts: list[Counts] = []
    try:
        if threads > 1:
            torch.set_num_threads(1)
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, axes.shape[1], _CHUNK):
                chunk = slice(start, min(start + _CHUNK, axes.shape[1]))
                columns, rows = axes[:, chunk].contiguous(), folded[chunk]

                def work(tile: slice, columns: torch.Tensor = columns, rows: torch.Tensor = rows) -> Counts:
                    ranks = sweep.advance(tile, columns, rows)
                    right = ranks == 0
                    return Counts(
                        resampling.counted(right, tile),
                        resampling.counted(ranks < 5, tile),
                        resampling.total(right, tile),
                    )

                tiles = sweep.tiles()
                done = list(map(work, tiles)) if threads == 1 else list(pool.map(work, tiles))
                parts.append(
                    Counts(
                        torch.stack([d.top1 for d in done]).sum(0),
                        torch.stack([d.top5 for d in done]).sum(0),
                        torch.stack([d.resampled for d in done]).sum(0),
                    )
                )
                if report is not None:
                    report(chunk.stop, axes.shape[1], "components")
                if stop is not None and _enough(parts, *stop):
                    break
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
    return _join(parts)


def sweep_callable(
    features: torch.Tensor,
    labels: torch.Tensor,
    offset: torch.Tensor,
    axes: torch.Tensor,
    predict: Callable[[torch.Tensor], torch.Tensor],
    resampling: Resampling,
    *,
    stop: tuple[float, torch.Tensor] | None = None,
    report: Reporter | None = None,
) -> Counts:
    """Counts for any head: the projection grows by one component and the head runs again, at every k."""
    projected = offset.expand_as(features).clone()
    scores = features @ axes
    parts: list[Counts] = []
    for k in range(axes.shape[1]):
        projected.addmm_(scores[:, k : k + 1], axes[:, k : k + 1].T)
        ranks = torch.cat(
            [rank_of_label(predict(x), y) for x, y in zip(projected.split(4096), labels.split(4096), strict=True)]
        )
        right = (ranks == 0)[:, None]
        parts.append(
            Counts(resampling.counted(right), resampling.counted((ranks < 5)[:, None]), resampling.total(right))
        )
        if report is not None:
            report(k + 1, axes.shape[1], "components")
        if stop is not None and k % 16 == 15 and _enough(parts, *stop):
            break
    return _join(parts)
