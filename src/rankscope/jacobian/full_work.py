"""What the full Jacobian of one cut point takes, counted: single products in both precisions, and what comes of them.

The counts follow from the plan alone. They are what ``products_of``, ``matrix_free`` and ``exact_spectrum`` do: a test
compares them with the products that are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from rankscope._base.facts import Fact, FactKind
from rankscope.jacobian.full_plan import Plan
from rankscope.jacobian.products import PAIRS
from rankscope.spectra.exact import matrix_bytes
from rankscope.spectra.matrix_free import ERROR_PROBES, LOOK, may_be_too_rough

__all__ = ["Compared", "Counted", "Work", "compared_by", "work_of"]


class Compared(Enum):
    """What watches over the products."""

    PROBES = "float64 products"
    SCALED = "float32 products, the difference scaled down"
    NOTHING = "nothing"


def compared_by(certificate: Fact) -> Compared:
    if certificate.kind is FactKind.PROBES:
        return Compared.PROBES
    return Compared.SCALED if certificate.kind is FactKind.SCALED_PROBES else Compared.NOTHING


@dataclass(frozen=True)
class Counted:
    """Single products J·v and Jᵀ·u."""

    pushed: int = 0
    pulled: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.pushed + other.pushed, self.pulled + other.pulled)

    @property
    def total(self) -> int:
        return self.pushed + self.pulled


@dataclass(frozen=True)
class Work:
    """Of one cut point. ``steps`` are those of each Lanczos process in turn.

    ``side`` is N where all N eigenvalues are computed, else 0; ``rows`` are those of the matrix of N columns whose Gram
    matrix is formed, 0 where products give it.
    """

    own: Counted
    """In the working precision."""
    other: Counted
    steps: tuple[int, ...] = ()
    side: int = 0
    rows: int = 0

    @property
    def cost(self) -> int:
        """Products, of which one in the other precision counts as two."""
        return self.own.total + 2 * self.other.total


def work_of(plan: Plan, place: int, compared: Compared, *, precise: bool = False) -> Work:
    """``precise``: the error of float32 products is too large for Lanczos steps with them, which shows on the way.

    What is pushed to all cut points at once is counted at each. Leading singular values that are computed one by one
    are not: whether they are shows at the end.
    """
    shape = plan.shapes[place]
    tall = shape[1] <= shape[0]

    def one(count: int) -> Counted:
        return Counted(pushed=count) if tall else Counted(pulled=count)

    def both(count: int) -> Counted:
        return Counted(count, count)

    mark = Counted(1, 1) if tall else Counted(1, 2)  # the first product also finds the scale
    own, other = mark, Counted()
    if compared is Compared.PROBES:
        own, other = own + Counted(pushed=1), Counted(PAIRS + 1, PAIRS)
    elif compared is Compared.SCALED:
        own, other = own + Counted(PAIRS + 1, PAIRS), Counted(pushed=1)
    else:
        own += both(PAIRS)
    if plan.ways[place] == "exact":
        return _exact(plan, place, compared, own, other)
    asked, size = plan.settings, plan.sizes[place]
    steps, probes = plan.steps(size), asked.probes
    error = both(ERROR_PROBES)
    own += error
    if compared is Compared.PROBES:
        other += error
    else:
        own, other = own + error, other + (error if compared is Compared.SCALED else Counted())
    may_be = compared is Compared.PROBES and may_be_too_rough(shape, plan.dtype, plan.asked.tolerance)
    look = min(LOOK, size)
    known = Counted(pulled=ERROR_PROBES) if tall else error  # of the products once more what was pushed is at hand
    if may_be and precise:  # the float64 products find their own scale
        own, other = own + both(look * probes) + error, other + one(ERROR_PROBES) + error + known + both(steps * probes)
        return Work(own, other, (look, steps))
    if may_be and look > steps:  # from the start again
        return Work(own + error + both((look + steps) * probes), other + known, (look, steps))
    return Work(own + both(steps * probes), other, (steps,))


def _exact(plan: Plan, place: int, compared: Compared, own: Counted, other: Counted) -> Work:
    shape, size = plan.shapes[place], plan.sizes[place]
    tall = shape[1] <= shape[0]
    double = compared is Compared.PROBES and plan.doubled(place)
    held = matrix_bytes(shape, torch.float64 if double else plan.dtype) <= plan.budget

    def made(count: int) -> Counted:
        if not held:
            return Counted(count, count)
        return Counted(pushed=count) if tall else Counted(pulled=count)

    error = made(ERROR_PROBES)
    squared = Counted() if held else error
    if double:
        scale = Counted() if held else Counted(int(tall), int(not tall))
        own, other = own + error, other + scale + made(size) + squared + error
    elif compared is Compared.PROBES:
        own, other = own + made(size) + squared, other + error
    else:
        own, other = own + made(size) + squared + error, other + (error if compared is Compared.SCALED else Counted())
    return Work(own, other, (), size, max(shape) if held else 0)
