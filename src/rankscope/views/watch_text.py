"""Numbers by layer and checkpoint as text: a table a metric, and what changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rankscope._base.facts import Fact
from rankscope._base.text import one_line
from rankscope.views.phrases import counted, in_columns
from rankscope.views.sentences import note

__all__ = ["metric_name", "watched_findings", "watched_text"]

_SHOWN = 8  # checkpoints beside each other on a terminal
_NOTED = 0.1  # share of the largest value by which a layer has to fall to be named
_PLAIN = {"jacobian_rank": "Jacobian rank", "pca_dimension": "PCA dimension", "rankme": "RankMe", "alpha_req": "α-ReQ"}


def metric_name(metric: str) -> str:
    """A metric as people read it.

    >>> metric_name("effective_rank"), metric_name("jacobian_rank")
    ('effective rank', 'Jacobian rank')
    """
    return _PLAIN.get(metric, metric.replace("_", " "))


def watched_text(
    values: Mapping[str, NDArray[np.float64]],
    layers: Sequence[str],
    steps: Sequence[int],
    unit: str,
    facts: Sequence[Fact],
) -> str:
    """What changed most, then one table per metric; of many checkpoints the first, the last and some between."""
    lines = watched_findings(values, layers, steps, unit)
    places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _SHOWN)).round().astype(int)).tolist()
    for metric, found in values.items():
        head = ["layer", *(f"{unit} {steps[i]:,}" for i in places)]
        body = [[one_line(layer), *(_text(found[row, i]) for i in places)] for row, layer in enumerate(layers)]
        lines += ["", metric_name(metric), *in_columns([head, *body])]
    return "\n".join([*lines, *(["", *map(note, facts)] if facts else [])])


def watched_findings(
    values: Mapping[str, NDArray[np.float64]], layers: Sequence[str], steps: Sequence[int], unit: str
) -> list[str]:
    """How many checkpoints there are, and of each metric the layer that has lost the largest share of its maximum.

    That it lost more than any other is said where there are others and every one is known to have lost less.
    """
    if not steps:
        return ["0 checkpoints."]
    span = f"{unit} {steps[0]:,}" if len(steps) == 1 else f"{unit}s {steps[0]:,} to {steps[-1]:,}"
    lines = [f"{counted(len(steps), 'checkpoint')} ({span}), {counted(len(layers), 'layer')}."]
    for metric, found in values.items():
        if len(steps) < 2 or metric == "alpha_req":  # a slope is neither good nor bad where it is small
            continue
        top = np.where(np.isnan(found), -np.inf, found).max(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            lost = np.where((top > 0) & np.isfinite(top), 1 - found[:, -1] / top, 0.0)
        lost = np.where(np.isnan(lost), 0.0, lost)
        row = int(lost.argmax())
        if lost[row] < _NOTED:
            continue
        at = int(np.nanargmax(found[row]))
        others = np.arange(len(lost)) != row
        # a layer without a number at some step may have lost more
        most = others.any() and bool((lost[others] < lost[row]).all()) and not np.isnan(found[others]).any()
        than = ", more than that of any other layer" if most else ""
        lines.append(
            f"The {metric_name(metric)} of {layers[row]!r} fell by {lost[row]:.0%}{than}: from "
            f"{_text(found[row, at])} at {unit} {steps[at]:,} to {_text(found[row, -1])} at {unit} {steps[-1]:,}."
        )
    return lines


def _text(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
