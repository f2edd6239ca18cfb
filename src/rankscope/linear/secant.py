"""The derivative against the function itself: differences of the outputs, which see a tensor that leaves.

Forward and reverse mode agree on a tensor that leaves the computation (``detach``, ``.data``, a detour through numpy):
both take it for a constant. Differences of the function itself do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rankscope.linear.methods import Method
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample
from rankscope.spectra import scaled_norm, scaled_norms

__all__ = ["FunctionCheck", "against_the_function", "secant_direction"]

_LIMIT = 0.05
_AGREE = 0.2  # of the gap and of the slope: what two slopes of one line may differ by; a bend shows as far more


@dataclass(frozen=True)
class _Steps:
    """Lengths as shares of ‖x‖: both steps at the image, how far the second point lies, and the steps there."""

    here: float
    closer: float
    nearby: float
    ladder: tuple[float, ...]
    rounding: float


# Of the units that tie at x, those within a step of their kink nearby are some 1e-5 (1% at first where numbers are
# narrow). The last steps serve chains that stretch 10^9 times.
_DOUBLE = _Steps(1e-5, 1e-7, 1e-2, (1e-7, 1e-8, 1e-9, 1e-10, 1e-11), 1e-14)
_SINGLE = _Steps(1e-3, 2e-4, 1e-1, (1e-3, 2e-4, 5e-5), 1e-6)


@dataclass(frozen=True)
class FunctionCheck:
    """What the comparison found, where first in the order of the network, and the gap there as a share."""

    verdict: Literal["agree", "leaves", "random", "unclear"]
    where: str = ""
    gap: float = 0.0
    place: int = 0


@dataclass(frozen=True)
class _Slope:
    """(F(x + hv) − F(x − hv))/2h of one cut point beside J·v, and what rounding alone may make of it."""

    secant: Tensor
    gap: float
    top: float
    rounding: float

    @property
    def share(self) -> float:
        """Of the larger of the two; 0 where rounding explains the gap."""
        return self.gap / self.top if self.top > 0 and not self.gap <= self.rounding else 0.0

    @property
    def close(self) -> bool:
        """Whether the two agree, whatever rounding may explain."""
        return self.gap / max(self.top, 1e-300) <= _LIMIT


def secant_direction(x: Tensor) -> Tensor:
    """As much of a random direction as of the input itself; ``x`` is one image, and so is what is returned.

    What leaves through one number of the whole map (its norm, its mean) shows along the input, and a random direction
    meets about 1/√n of it.
    """
    generator = torch.Generator().manual_seed(0xF0)
    random = torch.randn(x.shape, generator=generator).to(x)
    length = length_of(x)
    return random + x * (length_of(random) / length) if 0 < length < float("inf") else random


def against_the_function(
    runner: Runner, method: Method, sample: Sample, direction: Tensor, forward: tuple[Tensor, ...], *, narrow: bool
) -> FunctionCheck:
    """Whether J·v is the function's own derivative; ``forward`` holds J·v of every cut point, v = ``direction``.

    Two forward passes where all is well. Where the two differ, two more at a shorter step: the units of a deep network
    that lie within the first step of their kink bend it by some 5%, while what leaves is missing at every step. Where
    they still differ, the same point is evaluated twice, which shows a model that draws random numbers. Then a random
    point close by decides, with the derivative there (one more pass of ``method``): a flat region of the input makes
    exact ties in max pooling and exact zeros before a ReLU, where the function has one slope on either side; a random
    point has no ties. There the step shrinks. A function that bends within the step comes nearer to its derivative; a
    tensor that leaves makes two steps agree on another one, at every point: a second one has to say so too, since the
    first may lie closer to a kink than the shortest step.
    ``narrow`` says that numbers have less than double precision somewhere, so the steps have to be wide.
    """
    steps = _SINGLE if narrow else _DOUBLE
    slopes = _slopes(runner, sample, direction, forward, steps.here, steps)
    first = next((k for k, s in enumerate(slopes) if not s.share <= _LIMIT), None)
    if first is None:
        return FunctionCheck("agree")
    closer = _slopes(runner, sample, direction, forward, steps.closer, steps)
    if all(s.share <= _LIMIT or c.close for s, c in zip(slopes, closer, strict=True)):
        return FunctionCheck("agree")
    if _draws(runner, sample, first, slopes[first], direction, steps):
        return FunctionCheck("random", runner.keys[first][0])
    found = _nearby(runner, method, sample, direction, 0x5EC, steps)
    if found.verdict != "leaves":
        return found
    again = _nearby(runner, method, sample, direction, 0x5ED, steps)
    return max(found, again, key=lambda c: c.place) if again.verdict == "leaves" else again


def _nearby(
    runner: Runner, method: Method, sample: Sample, direction: Tensor, seed: int, steps: _Steps
) -> FunctionCheck:
    """The comparison at one random point close by, with shrinking steps."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(sample.x.shape, generator=generator, dtype=torch.float64).to(sample.x)
    moved = replace(sample, x=sample.x + steps.nearby * _length(sample.x) / length_of(noise) * noise)
    tangents = method(runner, moved, direction[None].to(moved.x))
    before: list[_Slope] | None = None
    clean: set[int] = set()
    wrong: dict[int, float] = {}
    unclear: list[int] = []
    for step in steps.ladder:
        slopes = _slopes(runner, moved, direction, tangents, step, steps)
        clean |= {k for k, s in enumerate(slopes) if s.close}
        if before is None:
            clean |= {k for k, s in enumerate(slopes) if s.gap <= s.rounding}
        else:
            pairs = enumerate(zip(before, slopes, strict=True))
            wrong |= {k: b.share for k, (a, b) in pairs if k not in wrong and _another_slope(a, b)}
        wrong = {k: share for k, share in wrong.items() if k not in clean}
        unclear = [k for k in range(min(wrong, default=len(slopes))) if k not in clean]
        before = slopes
        if not unclear:
            break
    if wrong:
        return FunctionCheck("leaves", runner.keys[min(wrong)][0], wrong[min(wrong)], min(wrong))
    return FunctionCheck("unclear", runner.keys[unclear[0]][0]) if unclear else FunctionCheck("agree")


def _slopes(
    runner: Runner, sample: Sample, direction: Tensor, forward: tuple[Tensor, ...], step: float, steps: _Steps
) -> list[_Slope]:
    direction = direction.to(sample.x)
    size = step * _length(sample.x) / max(length_of(direction), 1e-300)
    ahead, behind = (runner.outputs(sample, sample.x + s * size * direction) for s in (1.0, -1.0))
    secants, lengths = [], []
    for a, b, tangent in zip(ahead, behind, forward, strict=True):
        exact = tangent.reshape(-1).double()
        secant = (a.double() - b.double()) / (2 * size)
        secants.append(secant)
        lengths.append(scaled_norms([secant - exact, exact, secant, a]))
    rows = torch.stack(lengths).tolist()  # a GPU is waited for once
    return [
        _Slope(secant, gap, max(one, other), steps.rounding * reach / size)
        for secant, (gap, one, other, reach) in zip(secants, rows, strict=True)
    ]


def _another_slope(wide: _Slope, close: _Slope) -> bool:
    """Whether two steps agree on a slope and that is not the derivative."""
    if not min(wide.share, close.share) > _LIMIT:
        return False
    apart = length_of(wide.secant - close.secant)
    length = max(length_of(wide.secant), length_of(close.secant))
    return apart <= min(_AGREE * min(wide.gap, close.gap), _AGREE * length + close.rounding)


def _draws(runner: Runner, sample: Sample, k: int, slope: _Slope, direction: Tensor, steps: _Steps) -> bool:
    """Whether one point has outputs that differ by a fair part of what the step made them differ by."""
    one, two = (runner.outputs(sample, sample.x)[k].double() for _ in range(2))
    size = steps.here * _length(sample.x) / max(length_of(direction), 1e-300)
    return length_of(one - two) > 0.1 * slope.gap * 2 * size


def _length(x: Tensor) -> float:
    return max(length_of(x), 1e-3)


def length_of(values: Tensor) -> float:
    """Euclidean length of all entries, at any scale."""
    return float(scaled_norm(values.reshape(-1), 0))
