"""A profile as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankscope.views.phrases import phrase
from rankscope.views.sentences import note

if TYPE_CHECKING:
    from rankscope.jacobian.profile import JacobianProfile

__all__ = ["flags", "profile_text"]


def flags(row: dict[str, Any]) -> str:
    """What a reader must not overlook in one row of a profile, in words."""
    found = []
    if row["rises_by"]:
        found.append(f"rises by {row['rises_by']}")
    if row["near_threshold"]:
        found.append(f"{row['near_threshold']} near τ")
    if not row["certified"]:
        found.append("not certified")
    if row["zero_images"]:
        found.append(f"zero on {row['zero_images']}")
    if row["not_finite_images"]:
        found.append(f"not finite on {row['not_finite_images']}")
    if not row["true_cut"]:
        found.append("in a branch")
    return ", ".join(found)


def profile_text(profile: JacobianProfile) -> str:
    """Header, one line a cut point, and everything that could not be measured or must be known."""
    rows = list(profile.reading.rows)
    width = max([len(r["name"]) for r in rows] + [5])
    kind = "image" if len(profile.input_shape) == 3 else "sample"
    count = f"{len(profile.images)} {kind}{'s' * (len(profile.images) != 1)}"
    lines = [
        f"Jacobian rank of {profile.model} on {count}, {profile.columns}",
        f"tolerance {profile.tolerance.name}, background {profile.background}, {profile.dtype} on {profile.device}, "
        f"weights {profile.weights}",
        f"{'layer':<{width}}  {'rows':>9} {'min':>6} {'median':>7} {'max':>6}  {'bounds':<15} flags",
    ]
    for row in rows:
        rank, function = row["rank"], row["function_rank"]
        bounds = f"[{function['lower']}, {function['upper']}]" if row["certified"] else "none"
        lines.append(
            f"{row['name']:<{width}}  {row['rows']:>9,} {rank['min']:>6} {rank['median']:>7g} {rank['max']:>6}  "
            f"{bounds:<15} {flags(row)}".rstrip()
        )
    lines.append(
        f"max = function rank, with its certified bounds ({phrase(profile.certificate)}). "
        f"Method: {phrase(profile.method)}."
    )
    if profile.adjoint_error is not None:
        lines.append(f"forward and reverse mode agree to {profile.adjoint_error:.1e}")
    if any(profile.kinks):
        lines.append(f"units within rounding of a kink: {max(profile.kinks)} at most in one image")
    lines += [f"not measured: {name}: {why}" for name, why in profile.unmeasured.items()]
    lines += [f"skipped: {name}: {why}" for name, why in profile.skipped.items()]
    lines += map(note, profile.facts)
    return "\n".join(lines)
