"""Probes as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankscope.spectra import RankEstimate

if TYPE_CHECKING:
    from rankscope.probes.remedy_result import RemedyResult
    from rankscope.probes.result import ProbeResult

__all__ = ["probes_text", "remedies_text"]


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
    told = list(dict.fromkeys(r.certificate for r in results))
    for said in told:
        of = "" if len(told) == 1 else f" of {', '.join(r.name for r in results if r.certificate == said)}"
        lines.append(f"certificate{of}: {said}")
    lines += [f"note: {r.name}: {r.mode}" for r in results if r.mode]
    return "\n".join(lines)


def remedies_text(result: RemedyResult) -> str:
    """Header, and for each quantity one line a remedy with medians over the seeds at some depths."""
    shown = sorted({1, result.depth, *np.linspace(1, result.depth, 7).round().astype(int).tolist()})
    wide = max(len(c.label) for c in result.curves)
    seeds = f"{len(result.seeds)} seed{'s' * (len(result.seeds) > 1)}"
    lines = [
        f"{result.activation or 'linear'} chain of {result.depth} layers, {result.width} inputs, {seeds} (medians), "
        f"float64, {result.seconds:.1f} s"
    ]
    for title, name in (
        (f"Jacobian rank (tolerance {result.tolerance.name})", "ranks"),
        (f"PCA dimension of the features (tolerance paper, {result.samples:,} samples)", "dimensions"),
    ):
        lines += [title, f"{'layers':<{wide}}" + "".join(f"{k:>8}" for k in shown)]
        for curve in result.curves:
            middle = np.median(getattr(curve, name), axis=0)
            lines.append(f"{curve.label:<{wide}}" + "".join(f"{middle[k - 1]:>8g}" for k in shown))
    doubtful = [c.label for c in result.curves if not c.certain]
    if doubtful:
        lines.append(f"rounding could change some of these ranks: {', '.join(doubtful)}")
    if any(c.chain.normalisation == "batchnorm" for c in result.curves):
        lines.append("BatchNorm: by the statistics of the samples, which the Jacobian holds fixed")
    return "\n".join(lines)
