"""A profile as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankscope._base.facts import Fact, FactKind
from rankscope._base.text import one_line
from rankscope.views.phrases import bounds, counted, number, span
from rankscope.views.sentences import note, phrase

__all__ = ["PROBED", "flags", "profile_text"]

PROBED = (
    "A rank with a bracket is estimated with Lanczos probes; its bounds fail with probability 1e-6. The bracket is the "
    "width of the quadrature's bounds as a share of all singular values."
)

_UNCERTIFIED = {
    FactKind.NOT_CERTIFIED,
    FactKind.NOT_IN_FLOAT64,
    FactKind.NOT_IN_BOTH,
    FactKind.IN_DOUBT,
    FactKind.NO_COMMON_PATH,
}
_ESTIMATED = {FactKind.SCALED_PROBES, FactKind.NARROW_PROBES}


def flags(row: dict[str, Any]) -> str:
    """What a reader must not overlook in one row of a profile, in words."""
    found = []
    if row["rises_by"]:
        found.append(f"rises by {row['rises_by']:,}")
    if row["near_threshold"]:
        found.append(f"{row['near_threshold']:,} near τ")
    if not row["certified"]:
        found.append("not certified")
    if row["zero_images"]:
        found.append(f"zero on {row['zero_images']:,}")
    if row["not_finite_images"]:
        found.append(f"not finite on {row['not_finite_images']:,}")
    if row["uncalled_images"]:
        found.append(f"not called on {row['uncalled_images']:,}")
    if not row["true_cut"]:
        found.append("in a branch")
    return ", ".join(found)


def _bounds(row: dict[str, Any]) -> str:
    function = row["function_rank"]
    return bounds(function["lower"], function["upper"]) if row["certified"] else "none"


def _probes(row: dict[str, Any]) -> str:
    error, bracket = row.get("standard_error"), row.get("bracket")
    words = "-" if error is None else f"{error:.2g}" if error < 100 else f"{error:.0f}"
    return f"{words:>10} {'-' if bracket is None else f'{bracket:.1%}':>7}  "


def profile_text(
    rows: Sequence[dict[str, Any]],
    *,
    head: Sequence[str],
    certificate: Fact,
    method: Fact,
    adjoint_error: float | None,
    kinks: Sequence[int],
    unmeasured: Mapping[str, str],
    skipped: Mapping[str, str],
    facts: Sequence[Fact],
) -> str:
    """Header, one line per cut point, and everything that could not be measured or must be known."""
    width = max([len(one_line(r["name"])) for r in rows] + [5])
    sizes = [span(row.get("least_rows", row["rows"]), row["rows"]) for row in rows]
    room = max([len(size) for size in sizes] + [9])
    probed = any("bracket" in row for row in rows)
    wide = max([len(_bounds(row)) for row in rows] + [18])
    more = f"{'std. error':>10} {'bracket':>7}  " if probed else ""
    lines = [
        *map(one_line, head),
        f"{'layer':<{width}}  {'rows':>{room}} {'min':>7} {'median':>9} {'max':>7}  {'bounds':<{wide}} {more}flags",
    ]
    for row, size in zip(rows, sizes, strict=True):
        name, rank = one_line(row["name"]), row["rank"]
        lines.append(
            f"{name:<{width}}  {size:>{room}} {rank['min']:>7,} {number(rank['median']):>9} {rank['max']:>7,}  "
            f"{_bounds(row):<{wide}} {_probes(row) if probed else ''}{flags(row)}".rstrip()
        )
    bounded = (
        "without certified bounds" if certificate.kind in _UNCERTIFIED
        else "with its bounds" if certificate.kind in _ESTIMATED
        else "with its certified bounds"
    )  # fmt: skip
    lines.append(f"max = function rank, {bounded} ({phrase(certificate)}). Method: {phrase(method)}.")
    if probed:
        lines.append(PROBED)
    if adjoint_error is not None:
        lines.append(f"forward and reverse mode agree to {adjoint_error:.1e}")
    if any(kinks):
        lines.append(f"{counted(max(kinks), 'unit')} within rounding error of a kink (the most in one image)")
    lines += [one_line(f"not measured: {name}: {why}") for name, why in unmeasured.items()]
    lines += [one_line(f"skipped: {name}: {why}") for name, why in skipped.items()]
    lines += map(note, facts)
    return "\n".join(lines)
