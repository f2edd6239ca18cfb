"""Probes as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankscope.spectra import RankEstimate

if TYPE_CHECKING:
    from rankscope.probes.result import ProbeResult

__all__ = ["probes_text"]


def _shown(estimate: RankEstimate) -> str:
    if not estimate.certified:
        return f"{estimate.value} [?]"
    return f"{estimate.value}" if not estimate.near else f"{estimate.value} [{estimate.lower}, {estimate.upper}]"


def _expected(result: ProbeResult) -> str:
    row = result.summary()
    exact, numerical = row["expected_exact"], row["expected_numerical"]
    if exact is None:
        return "unknown" if result.expectation else "-"
    return str(exact) if numerical in (None, exact) else f"{exact} ({numerical})"


def probes_text(results: Sequence[ProbeResult]) -> str:
    """Header, one line a component, and what has to be known to read it."""
    if not results:
        return "no component was probed"
    first = results[0]
    shape = "×".join(map(str, first.input_shape))
    width = max([len(r.name) for r in results] + [9])
    lines = [
        f"Gaussian input of {shape}, {first.batch:,} samples, behind a random {first.front} layer of "
        f"{first.jacobian_before.shape[0]:,} units",
        f"tolerance {first.tolerance.name}, {first.dtype} on {first.device}",
        f"before every component: PCA dimension {_shown(first.dimension_before)}, "
        f"Jacobian rank {_shown(first.rank_before)}",
        f"{'component':<{width}}  {'outputs':>7}  {'PCA dim':>16}  {'rank':>16}  {'exact ≥':>7}  {'expected':>13}",
    ]
    for r in results:
        mark = "*" if r.at_sample_limit else " "
        lines.append(
            f"{r.name:<{width}}  {r.jacobian_after[0].shape[0]:>7}  {_shown(r.dimension_after) + mark:>16}  "
            f"{_shown(r.rank_after):>16}  {r.exact_rank_at_least:>7}  {_expected(r):>13}"
        )
    if any(r.at_sample_limit for r in results) or first.dimension_before.value >= first.sample_limit:
        lines.append(f"* the sample limit: {first.batch:,} samples cannot show more than {first.sample_limit:,}")
    lines.append("expected: exact rank of the component at the point (in brackets: without what an ε shrinks away)")
    lines.append("bounds in brackets where rounding could change the count; [?]: not certified")
    lines += [f"note: {r.name}: {r.mode}" for r in results if r.mode]
    return "\n".join(lines)
