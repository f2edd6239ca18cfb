"""Probes as a table for the terminal."""

from __future__ import annotations

import numpy as np

from rankscope._base.text import one_line
from rankscope.views.phrases import bounds, counted, number, shape_of
from rankscope.views.probes import Bounded, ProbeRow, ProbesView, RemediesView
from rankscope.views.sentences import phrase, sentence

__all__ = ["probes_text", "remedies_text"]


def _shown(estimate: Bounded) -> str:
    if not estimate.certified:
        return f"{estimate.value:,} [?]"
    exact = estimate.lower == estimate.upper
    return f"{estimate.value:,}" + ("" if exact else f" {bounds(estimate.lower, estimate.upper)}")


def _expected(result: ProbeRow) -> str:
    exact, numerical = result.expected
    if exact is None:
        return "unknown" if result.expectation else "-"
    return f"{exact:,}" if numerical in (None, exact) else f"{exact:,} ({numerical:,})"


def probes_text(found: ProbesView) -> str:
    """Header, one line per component, and what has to be known to read it."""
    results, first = found.rows, found.rows[0]
    width = max([len(one_line(r.name)) for r in results] + [9])
    source = f"Gaussian input of {shape_of(found.input_shape)}, {counted(found.samples, 'sample')}, behind a random "
    source += f"{found.front.replace('gaussian', 'Gaussian')} layer of {counted(found.units, 'unit')}"
    if found.front == "none":
        each = shape_of(found.input_shape) if found.input_shape else "one number"
        source = f"{counted(found.samples, 'sample')} of {each} as given"
    lines = [
        source,
        f"tolerance: {found.tolerance}, {found.dtype} on {found.device}",
        f"before every component: PCA dimension {_shown(first.dimension_before)}, "
        f"Jacobian rank {_shown(first.rank_before)}",
        f"{'component':<{width}}  {'outputs':>7}  {'PCA dim':>22}  {'rank':>22}  {'exact ≥':>7}  {'expected':>13}",
    ]
    for r in results:
        mark = "*" if r.at_sample_limit else " "
        lines.append(
            f"{one_line(r.name):<{width}}  {r.outputs:>7,}  {_shown(r.dimension_after) + mark:>22}  "
            f"{_shown(r.rank_after):>22}  {r.exact_rank_at_least:>7,}  {_expected(r):>13}"
        )
    if any(r.at_sample_limit for r in results) or first.dimension_before.value >= found.sample_limit:
        lines.append(f"* the sample limit: {found.samples:,} samples cannot show more than {found.sample_limit:,}")
    lines.append("expected: exact rank at the point (in brackets: without directions that an ε shrinks away)")
    lines.append("[lower, upper]: bounds, if rounding could change the count; [?]: not certified")
    told = list(dict.fromkeys(r.certificate for r in results))
    for said in told:
        of = "" if len(told) == 1 else f" of {', '.join(one_line(r.name) for r in results if r.certificate == said)}"
        lines.append(f"certificate{of}: {phrase(said)}")
    lines += [f"{one_line(r.name)}: {sentence(fact)}" for r in results for fact in r.facts]
    return "\n".join(lines)


def remedies_text(result: RemediesView) -> str:
    """Header, and for each quantity one line per remedy with medians over the seeds at some depths."""
    depth = len(result.depths)
    shown = sorted({1, depth, *np.linspace(1, depth, 7).round().astype(int).tolist()})
    wide = max(len(one_line(c.label)) for c in result.curves)
    lines = [
        f"{result.activation or 'linear'} chain of {counted(depth, 'layer')}, {counted(result.width, 'input')}, "
        f"{counted(result.seeds, 'seed')} (medians), float64, {result.seconds:.1f} s"
    ]
    for title, name in (
        (f"Jacobian rank (tolerance: {result.tolerance})", "ranks"),
        (f"PCA dimension of the features (tolerance: paper, {counted(result.samples, 'sample')})", "dimensions"),
    ):
        lines += [title, f"{'layers':<{wide}}" + "".join(f"{k:>8}" for k in shown)]
        for curve in result.curves:
            middle = np.median(getattr(curve, name), axis=0)
            lines.append(f"{one_line(curve.label):<{wide}}" + "".join(f"{number(middle[k - 1]):>8}" for k in shown))
    doubtful = [one_line(c.label) for c in result.curves if not c.certain]
    if doubtful:
        lines.append(f"rounding could change some of these ranks: {', '.join(doubtful)}")
    if any(c.batchnorm for c in result.curves):
        lines.append("BatchNorm uses the statistics of the samples, which the Jacobian holds fixed")
    return "\n".join(lines)
