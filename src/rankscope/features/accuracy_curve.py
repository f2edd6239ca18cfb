"""Rank of the true class at every number of components, from one sweep that touches each logit a few times in all.

With P = features · Q (samples × components) and U = Qᵀ · Wᵀ (components × classes), the logits of the projection on the
top k components are offset + P[:, :k] · U[:k]. They change by one rank-1 term a component, and almost never enough to
move a class past the true one: within a block of components, |Σ_i P_i (u_ij − u_iy)| ≤ ‖P_block‖·(‖u_j‖ + ‖u_y‖) for
every partial sum (Cauchy and Schwarz; the mean over the classes may be taken out of u first). So only the pairs
(sample, class) whose margin lies within that bound are followed component by component; all others keep their order
through the block, and one matrix product carries their logits to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["RankSweep", "rank_of_label"]

_BLOCK = 32  # components a block; measured: 8 and 16 take up to three times as long
# Undecided share of (row, class) pairs above which following all classes of the row densely is cheaper; measured.
_DENSE_SHARE = 0.35
_PAIRS = {"cpu": 1 << 15, "cuda": 1 << 22}  # pairs followed at a time: their block stays in cache
_TILE = {"cpu": 256, "cuda": 32_768}  # samples a tile: on a CPU its logits for 1,000 classes stay in L2
# float32 rounding of a bound: relative, times the size of the terms it is made of
_SLACK = 2e-5


def rank_of_label(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many classes come before the true one, (N,) int64; 0 means that ``argmax`` is right.

    Ties count as ``torch.argmax`` breaks them: of equal logits, the lower class index comes first.

    >>> rank_of_label(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1]))
    tensor([0, 1])
    """
    own = logits.gather(1, labels[:, None])
    index = torch.arange(logits.shape[1], device=logits.device)
    # a NaN is on neither side of a comparison: it counts as before the true class, and as never right when its own
    before = (logits > own) | ((logits == own) & (index < labels[:, None])) | logits.isnan() | own.isnan()
    return before.sum(1)


@dataclass
class RankSweep:
    """Logits of all samples after the components seen so far, and the ranks of the true class along the way.

    Attributes
    ----------
    features : torch.Tensor
        (N, d) float32 or float64, already centred where the projection says so.
    labels : torch.Tensor
        (N,) int64, on the device of ``features``.
    logits : torch.Tensor
        (N, c) in the dtype of ``features``, changed in place: the offset (bias) at first.
    cap : int
        Ranks are exact below ``cap`` and at least ``cap`` otherwise: 1 for top-1 alone, 5 for top-5 as well.
    """

    features: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    cap: int = 5

    def tiles(self) -> list[slice]:
        """Slices of samples that are worked on together."""
        size = max(1, _TILE.get(self.features.device.type, 256) * 1000 // max(self.logits.shape[1], 250))
        return [slice(a, min(a + size, len(self.labels))) for a in range(0, len(self.labels), size)]

    def advance(self, tile: slice, axes: torch.Tensor, folded: torch.Tensor) -> torch.Tensor:
        """Add the components ``axes`` (d × m), ``folded`` = axesᵀ·Wᵀ (m × c); ranks after each, (samples, m) int32."""
        labels, logits = self.labels[tile], self.logits[tile]
        scores = self.features[tile] @ axes
        ranks = torch.empty(len(labels), axes.shape[1], dtype=torch.int32, device=labels.device)
        for start in range(0, axes.shape[1], _BLOCK):
            block = slice(start, min(start + _BLOCK, axes.shape[1]))
            ranks[:, block] = _block_ranks(logits, scores[:, block], folded[block], labels, self.cap)
            logits.addmm_(scores[:, block], folded[block])
        return ranks


def _block_ranks(
    logits: torch.Tensor, scores: torch.Tensor, folded: torch.Tensor, labels: torch.Tensor, cap: int
) -> torch.Tensor:
    """Ranks of the true class after each of the block's components, (samples, m); ``logits`` are those before it."""
    ranks = torch.zeros(scores.shape, dtype=torch.int32, device=labels.device)
    own = logits.gather(1, labels[:, None])
    reach = torch.linalg.vector_norm(scores, dim=1, keepdim=True) * (1 + _SLACK)
    spread = torch.linalg.vector_norm(folded - folded.mean(1, keepdim=True), dim=0)
    size = logits.abs().amax(1, keepdim=True) + reach * torch.linalg.vector_norm(folded, dim=0).amax()
    edge = reach * spread[labels][:, None] + _SLACK * size  # what the true class and rounding can contribute
    upper = torch.addmm(logits, reach, spread[None])
    upper.scatter_(1, labels[:, None], -torch.inf)
    open_rows = (upper.amax(1, keepdim=True) >= own - edge).flatten().nonzero().flatten()
    if not len(open_rows):
        return ranks
    whole = len(open_rows) == len(labels)
    if not whole:
        logits, own, labels = logits[open_rows], own[open_rows], labels[open_rows]
        upper, edge, reach, scores = upper[open_rows], edge[open_rows], reach[open_rows], scores[open_rows]
    ahead = torch.addmm(logits, -reach, spread[None]) > own + edge  # before the true class throughout the block
    base = ahead.sum(1)
    undecided = (upper >= own - edge) & ~ahead & (base < cap)[:, None]
    found = base.to(torch.int32)[:, None].expand(-1, scores.shape[1]).contiguous()
    share = float(undecided.sum()) / undecided.numel()
    if share > _DENSE_SHARE:
        live = (base < cap).nonzero().flatten()
        found[live] = _dense(logits[live], scores[live], folded, labels[live])
    elif share:
        _follow_pairs(found, undecided, logits - own, scores, folded, labels)
    if whole:
        return found
    ranks[open_rows] = found
    return ranks


def _dense(logits: torch.Tensor, scores: torch.Tensor, folded: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Ranks by updating every logit with one component at a time; ``logits`` is a copy and is used up."""
    # z_y − z_j < 0 counts class j; a tie counts when j < y. In the bits of the difference, read as an integer, both
    # are one sign bit: a tie is +0, and subtracting 1 there makes it negative, but no positive number.
    tie = (torch.arange(logits.shape[1], device=labels.device) < labels[:, None]).to(torch.int32)
    ranks = torch.empty(scores.shape, dtype=torch.int32, device=labels.device)
    difference = torch.empty_like(logits)
    whole, sign = (torch.int64, 63) if difference.dtype == torch.float64 else (torch.int32, 31)
    bits = difference.view(whole)
    tie = tie.to(whole)
    for k in range(scores.shape[1]):
        logits.addmm_(scores[:, k : k + 1], folded[k : k + 1])
        torch.sub(logits.gather(1, labels[:, None]), logits, out=difference)
        bits.sub_(tie).bitwise_right_shift_(sign)
        ranks[:, k] = -bits.sum(1, dtype=torch.int32)
    return ranks


def _follow_pairs(
    found: torch.Tensor,
    undecided: torch.Tensor,
    margin: torch.Tensor,
    scores: torch.Tensor,
    folded: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Add to ``found`` the components after which each undecided class comes before the true one."""
    rows, classes = undecided.nonzero(as_tuple=True)
    start = margin[rows, classes]
    columns = folded.T.contiguous()
    step = _PAIRS.get(found.device.type, 1 << 15)
    for a in range(0, len(rows), step):
        row, other = rows[a : a + step], classes[a : a + step]
        true = labels[row]
        path = (columns[other] - columns[true]).mul_(scores[row]).cumsum_(1).add_(start[a : a + step, None])
        before = (path > 0) | ((path == 0) & (other < true)[:, None])
        found.index_add_(0, row, before.to(torch.int32))
