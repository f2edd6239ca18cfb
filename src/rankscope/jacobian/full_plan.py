"""How the full Jacobian of each cut point is to be measured, what that needs, and how long it will take.

The choice follows from sizes and the memory budget alone, so that the same call chooses alike everywhere. What it takes
is counted in ``full_work``, timed in ``full_seconds`` and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rankscope._base.facts import Fact, FactKind
from rankscope.spectra import Tolerance
from rankscope.spectra.exact import exact_bytes, matrix_bytes
from rankscope.spectra.lanczos import LanczosProcess
from rankscope.spectra.matrix_free import Lanczos, way_for

__all__ = ["Asked", "Plan", "plan_for"]

_SWEPT = 1_024  # inputs up to which one sweep of all columns serves every cut point
_GRAMS = 3  # N×N float64 matrices that one cut point's eigenvalues need beside those that wait


@dataclass(frozen=True)
class Asked:
    """What the caller wants of ``columns="all"``; ``tolerance`` is where ``steps="auto"`` reads its bracket."""

    method: Lanczos | str
    tolerance: Tolerance

    def question(self, columns: int) -> dict[str, str]:
        """What kept results have to agree in. The memory budget is not part of it: it decides how, not what."""
        if not isinstance(self.method, Lanczos) and columns <= _SWEPT:
            return {}
        return {"method": repr(self.method), "at": repr(self.tolerance)}

    @property
    def settings(self) -> Lanczos:
        return self.method if isinstance(self.method, Lanczos) else Lanczos()


@dataclass(frozen=True)
class Plan:
    """One way per cut point. ``swept``: one sweep of all columns gives every cut point's singular values."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    ways: tuple[Literal["exact", "lanczos"], ...]
    swept: bool
    asked: Asked
    budget: int
    dtype: torch.dtype = torch.float32

    @property
    def sizes(self) -> tuple[int, ...]:
        """N of each cut point, the smaller of its rows and the inputs."""
        return tuple(min(shape) for shape in self.shapes)

    @property
    def settings(self) -> Lanczos:
        return self.asked.settings

    @property
    def bytes(self) -> int:
        """What the largest cut point takes beside its products."""
        each = [
            self._exact_bytes(shape) if way == "exact" else self._lanczos_bytes(min(shape))
            for shape, way in zip(self.shapes, self.ways, strict=True)
        ]
        return max(each, default=0)

    def _exact_bytes(self, shape: tuple[int, int]) -> int:
        """In float64, which may be needed, where the whole matrix fits then, and in the dtype of the network."""
        held = [matrix_bytes(shape, dtype) for dtype in (self.dtype, torch.float64)]
        return max([each for each in held if each <= self.budget], default=exact_bytes(min(shape)))

    def _lanczos_bytes(self, size: int) -> int:
        return LanczosProcess.bytes_needed(size, self.settings.probes, self.steps(size))

    def steps(self, size: int) -> int:
        """How many of each probe are expected: those that have room, and no more than N."""
        fits = LanczosProcess.steps_within(self.budget, size, self.settings.probes)
        return min(self.settings.expected_steps, fits, size)

    def doubled(self, place: int) -> bool:
        """Whether singular values of a float32 network come of float64 products, without a look at others."""
        held = matrix_bytes(self.shapes[place], self.dtype) <= self.budget
        return self.dtype == torch.float32 and (self.asked.method == "exact" or not held)

    def fact(self, seconds: float, beside: int = 0) -> Fact:
        """The plan in values; ``seconds`` are those of one sample, ``beside`` the bytes of its products."""
        exact = [size for size, way in zip(self.sizes, self.ways, strict=True) if way == "exact"]
        probed = [size for size, way in zip(self.sizes, self.ways, strict=True) if way == "lanczos"]
        values = {
            "asked": "lanczos" if isinstance(self.asked.method, Lanczos) else self.asked.method,
            "exact": len(exact),
            "lanczos": len(probed),
            "side": max(exact, default=0),
            "needed": exact_bytes(min(probed)) if probed else 0,
            "budget": self.budget,
            "probes": self.settings.probes,
            "steps": self.settings.steps,
            "bytes": self.bytes + beside,
            "seconds": float(seconds),
        }
        return Fact(FactKind.FULL_PLAN, values)


def plan_for(
    names: Sequence[str],
    rows: Sequence[int],
    columns: int,
    asked: Asked,
    budget: int,
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """The plan for cut points of so many rows, with ``columns`` inputs.

    Raises
    ------
    UsageError
        When the memory budget is too small for the method.

    >>> tolerance = Tolerance(rtol=1e-2)
    >>> plan_for(["a", "b"], [10, 800_000], 150_528, Asked("auto", tolerance), 2**32).ways
    ('exact', 'lanczos')
    >>> plan_for(["a", "b"], [4096, 2048], 3072, Asked("auto", tolerance), 2**32).swept
    True
    """
    shapes = tuple((each, columns) for each in rows)
    sizes = [min(shape) for shape in shapes]
    if asked.method == "auto" and columns <= _SWEPT:  # a sweep splits its rows into groups that fit any budget
        return Plan(tuple(names), shapes, tuple("exact" for _ in shapes), True, asked, budget, dtype)
    ways = tuple(way_for(shape, asked.method, budget, dtype) for shape in shapes)
    held = 8 * columns * columns * (len(shapes) + _GRAMS)
    cheaper = columns <= sum(sizes) and held <= budget
    swept = all(way == "exact" for way in ways) and (columns <= _SWEPT or cheaper)
    return Plan(tuple(names), shapes, ways, swept, asked, budget, dtype)
