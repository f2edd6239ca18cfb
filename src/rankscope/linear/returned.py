"""What a result says of what its cut points return: several tensors, complex ones, and such without a derivative."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rankscope._base.facts import Fact, FactKind
from rankscope.slicing import ModuleCall, Sample, derivative_ends, unmoved

__all__ = ["returned_facts", "without_derivative"]


def returned_facts(calls: Sequence[ModuleCall]) -> list[Fact]:
    """Which tensors a cut point holds where that is more than one, and what was left out."""
    together: dict[tuple[str, ...], list[str]] = {}
    left: dict[tuple[str, ...], list[str]] = {}
    for call in calls:
        if call.tensors:
            together.setdefault(call.tensors, []).append(call.name)
        if call.left_out:
            left.setdefault(call.left_out, []).append(call.name)
    facts = [Fact(FactKind.SEVERAL_TENSORS, {"names": tuple(n), "tensors": t}) for t, n in together.items()]
    facts += [Fact(FactKind.LEFT_OUT, {"names": tuple(n), "what": w}) for w, n in left.items()]
    parts = tuple(c.name for c in calls if c.complex)
    return [*facts, Fact(FactKind.COMPLEX_ROWS, {"names": parts})] if parts else facts


def without_derivative(
    model: nn.Module, sample: Sample, calls: Sequence[ModuleCall]
) -> tuple[dict[str, str], str | None]:
    """Why each of these calls that has no derivative has none; and where the derivative ends, if it should have one."""
    none = [c for c in calls if not c.depends]
    still = unmoved(model, sample, [c.key for c in none]) if none else set()
    ends = derivative_ends(model, sample) if len(still) < len(none) else None
    cut_off = f"{ends}; no derivative with respect to the input reaches it"
    plain = "its output does not depend on the input"
    return {c.name: cut_off if ends and c.key not in still else plain for c in none}, ends
