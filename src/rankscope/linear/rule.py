"""What the registry of operator rules is made of: one operator call, and what its rule says of it.

A tangent has the shape of a value with the chunk in front, and is carried on a region: the positions outside of which
it is zero by construction. A rule says in one place how a call maps tangents, on which regions it takes them, and on
which region it gives the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor, fx

from rankscope.linear.regions import Region

__all__ = ["Call", "Derived", "Push", "Regions", "Rule", "Tangent", "first_alone", "shifted", "whole_of"]

Tangent: TypeAlias = Any
"""A tensor, a list of them for an operator that returns several, or ``None`` for zero."""

Regions: TypeAlias = Any
"""A region, or one for each value of an operator that returns several."""

Push: TypeAlias = Callable[[Sequence[Tangent], Sequence[bool]], Tangent]
"""From the tangents of the arguments that depend on the input, and which of them may be overwritten, the output's."""


@dataclass(frozen=True)
class Call:
    """One operator call at the linearisation point.

    ``regions`` say, for each of ``sources`` (the distinct arguments that depend on the input, in order), on which
    region its tangent comes.
    """

    node: fx.Node
    args: Any
    kwargs: Any
    out: Any
    depends: set[str]
    regions: tuple[Regions, ...]

    @cached_property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(n.name for n in self.node.all_input_nodes if n.name in self.depends))

    @cached_property
    def which(self) -> list[bool]:
        """Which positional arguments depend on the input."""
        return [isinstance(a, fx.Node) and a.name in self.depends for a in self.node.args]

    @property
    def distinct(self) -> bool:
        """Whether each source stands in one place, and all of them among the positional arguments."""
        return sum(self.which) == len(self.sources) and len(self.sources) == len(
            {a.name for a, w in zip(self.node.args, self.which, strict=True) if w and isinstance(a, fx.Node)}
        )

    @property
    def region(self) -> Region:
        """The first source's region."""
        found: Region = self.regions[0]
        return found

    @property
    def whole(self) -> bool:
        """Whether every tangent comes whole."""
        return all(_is_whole(r) for r in self.regions)


def _is_whole(regions: Regions) -> bool:
    if isinstance(regions, list | tuple):
        return all(_is_whole(r) for r in regions)
    return regions is None or bool(regions.is_whole)


def whole_of(value: Any) -> Regions:
    """All of a value, or of each of several."""
    if isinstance(value, list | tuple):
        return [whole_of(v) for v in value]
    return Region.whole(value.shape) if isinstance(value, Tensor) else None


@dataclass(frozen=True)
class Derived:
    """A call's derivative: ``push`` takes tangents on the regions ``takes`` and gives one on ``gives``.

    ``None`` stands for whole values.
    """

    push: Push
    gives: Regions = None
    takes: tuple[Regions, ...] | None = None


@dataclass(frozen=True)
class Rule:
    """What is known of one operator.

    Attributes
    ----------
    derive : callable, optional
        The derivative of a call; ``None``, or a result of ``None``: the operator goes through ``vmap(jvp)`` alone.
    alike : bool
        Whether torch's forward-mode and reverse-mode formulas give one derivative, on either side of a kink and exactly
        at it.
    ties : callable, optional
        Where the two differ exactly at a kink: whether a call's arguments lie there, as a tensor.
    """

    derive: Callable[[Call], Derived | None] | None = None
    alike: bool = True
    ties: Callable[..., Tensor] | None = None


def first_alone(derive: Callable[[Call], Derived | None]) -> Callable[[Call], Derived | None]:
    """A rule for calls whose first argument alone depends on the input."""

    def guarded(call: Call) -> Derived | None:
        return derive(call) if call.which and call.which[0] and len(call.sources) == sum(call.which) == 1 else None

    return guarded


def shifted(dim: int, ndim: int) -> int:
    """A value's dimension as one of its tangent."""
    return dim % max(ndim, 1) + 1
