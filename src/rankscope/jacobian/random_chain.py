"""The random chain beside a profile: its sizes, its expected rank, and how far one chain may lie from that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from rankscope.slicing import Stretch
from rankscope.spectra import Tolerance

__all__ = ["chain_rank", "extended", "slack"]

# How far one random chain may lie from the law without meaning anything. Part of it is fixed; the rest is the
# threshold's: σ_1, which it is a share of, scatters about the mean that the law has. log σ_1 does so by
# δ = 0.4·L·n^(-2/3) (the Tracy-Widom scale at the edge), at most √(L/2n) (the central limit theorem in depth), where n
# is the smallest size and L = Σ √(n/n_l) the depth, and the count follows by τ = δ·|d count / d log rtol|, at most
# 0.4·n^(1/3). Simulated: the standard deviation of the count is hypot(0.7, τ). 0.8·τ on top, by which its mean lay
# above the law with σ_1 at its limit, is kept: without it one verdict in 1,696 is false, with it none.
# With N cut points the largest of N deviations counts: √(2·log 10N) of them.
# False verdicts of any kind over fresh seeds at rtol 1e-12, 1e-6, 1e-5, 1e-4, 0.01, 0.03, 0.1, 0.2, 0.3 and 0.5, chains
# judged at every layer, squares of 8 (60 layers), 30 (60), 64 (40), 100 (50) and 300 (15), and 256 … 16, 64 … 16,
# 200, 400, 100, …, 300 and 50, 600, …, 600: none in 3,650 (45 chains each; 30 and 20 of the widest) with σ_1 at its
# limit, where the fixed part alone had 153, and none in 1,696 with σ_1 at its mean, where the fixed part had 13.
_SLACK, _SLACK_SHARE = 3.0, 0.01
_EDGE, _BIAS, _COUNT_SD, _STEP = 0.4, 0.8, 0.7, 0.1
_ROUNDING = 1e-6  # a prediction of 9.9999999 leaves all ten


def extended(sizes: list[int], stretch: Stretch, rows: int) -> list[int]:
    """The chain's sizes, the columns first, with the layers of one more stretch that ends in so many rows."""
    if not stretch:
        return [*sizes[:-1], min(sizes[-1], rows)]  # what does not mix may narrow the last of these
    if not stretch.plain or not stretch.sizes:
        return [*sizes, rows]
    for entering, leaving in stretch.sizes:
        # pooling before the operation narrows what came before; 0: not told
        sizes = [*sizes[:-1], min(sizes[-1], entering or sizes[-1]), leaving or rows]
    return [*sizes[:-1], min(sizes[-1], rows)]


def chain_rank(sizes: Sequence[int], rtol: float) -> float:
    """Expected rank of the product of Gaussian layers of these sizes."""
    return _chain_rank(tuple(sizes), rtol)


@lru_cache(maxsize=4096)
def _chain_rank(sizes: tuple[int, ...], rtol: float) -> float:
    from rankscope.theory import rectangular_chain_rank

    room = float(min(sizes))
    if len(sizes) == 1:
        return room
    law = rectangular_chain_rank(sizes[0], sizes[1:], Tolerance(rtol=rtol))
    return law if room - law >= _ROUNDING else room


def slack(sizes: list[int], rtol: float, cuts: int) -> float:
    """By how much one random chain may differ from the law at any of so many cut points, dimensions."""
    room = min(sizes)
    depth = sum(math.sqrt(room / n) for n in sizes[1:])
    delta = min(_EDGE * depth * room ** (-2 / 3), math.sqrt(depth / (2 * room)))
    gained = chain_rank(sizes, rtol * math.exp(-_STEP)) - chain_rank(sizes, rtol)
    shift = min(delta * gained / _STEP, _EDGE * room ** (1 / 3))
    deviations = math.sqrt(2 * math.log(10 * max(1, cuts)))
    return max(_SLACK + _SLACK_SHARE * room, _BIAS * shift + deviations * math.hypot(_COUNT_SD, shift))
