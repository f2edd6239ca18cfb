"""Fig. 3: feature dimension and Jacobian rank before and after single components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rankscope._base.facts import Fact, FactKind
from rankscope._base.frames import Frame
from rankscope._base.provenance import device_name, versions
from rankscope.probes import SCALES, probe_all, standard_components
from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.parts import Parts
from rankscope.reproduce.pictures import Picture
from rankscope.reproduce.settings import Settings
from rankscope.spectra import EPS32, Spectrum, Tolerance

__all__ = ["components"]

# The paper's Fig. 3 names these; the others of the standard set stand beside them.
_PAPER = ("conv3x3", "fc", "instancenorm", "layernorm", "groupnorm")
# (C, H, W) and samples: paper, §6.1, and for tests 256 dimensions
_SIZES = {"full": SCALES["full"], "small": ((16, 4, 4), 160)}
_TOGETHER = 4  # components a part: what stands before them is measured once for all of them
_WHY = "the paper does not state how weights are drawn, which sets how many singular values fall below the threshold"


def components(name: str, settings: Settings) -> Reproduction:
    """Probe every standard component behind one random layer, four a part."""
    import pandas as pd

    shape, batch = _SIZES[settings.scale]
    names = list(standard_components((4, 2, 2)))
    names = [*(n for n in _PAPER if n in names), *(n for n in names if n not in _PAPER)]
    parts, rows = Parts(settings.parts), []
    for start in range(0, len(names), _TOGETHER):
        group = names[start : start + _TOGETHER]
        settings.report(start, len(names), ", ".join(group))
        given = {
            "components": group,
            "input_shape": list(shape),
            "batch": batch,
            "eigenvalues": "the width, and min(samples, width)",  # N of the PCA dimension
            "seed": settings.seed,
            "device": settings.device.type,
        }
        rows += parts.keep(f"components/{start:02d}-{group[0]}", given, lambda _, g=group: _measure(g, settings))  # type: ignore[misc]
    values = pd.DataFrame(rows)
    tolerance = settings.as_printed
    comparison = []
    for row in rows:
        if row["component"] not in _PAPER:
            continue
        code = tolerance == "reference"
        dimension = "_reference" if code else ""
        for what, before, after, how, does in (
            (
                "feature dimension", row[f"dimension_before{dimension}"], row[f"dimension_after{dimension}"],
                f"λ ≥ eps32·N·λ₁, N = {'min(samples, width)' if code else 'the width'}",
                "N = min(samples, width) eigenvalues in eps32·N·λ₁",
            ),
            (
                "Jacobian rank", row[f"rank_before_{tolerance}"], row[f"rank_after_{tolerance}"],
                f"tolerance {tolerance}",
                "the default matrix_rank of the float32 Gram matrix JᵀJ",
            ),
        ):  # fmt: skip
            exact = row["expected_exact"] if what == "Jacobian rank" else None
            comparison.append(
                PaperComparison(
                    f"{row['label']}: {what} after ({before:,} before)", None, float(after),
                    None if exact is None else float(exact), how, _WHY, "bars without values (Fig. 3)", does,
                )
            )  # fmt: skip
    kept = [r["label"] for r in rows if r[f"rank_after_{tolerance}"] >= r[f"rank_before_{tolerance}"]]
    facts = [Fact(FactKind.RANK_KEPT, {"names": kept, "total": len(rows)})]
    if rows and rows[0]["dimension_before"] >= batch - 1:
        facts.append(Fact(FactKind.SAMPLE_LIMIT, {"samples": batch}))
    if not settings.full:
        facts.append(Fact(FactKind.SMALL_SCALE, {"sizes": (("input_shape", shape), ("samples", batch))}))
    return Reproduction(
        name=name,
        title="Fig. 3: dimension and rank before and after components",
        as_printed=settings.as_printed,
        numbers=Frame.of(values),
        comparison=tuple(comparison),
        disagreement=_disagreement(rows, int(np.prod(shape))),
        settings={
            "as_printed": settings.as_printed,
            "scale": settings.scale,
            "input_shape": list(shape),
            "batch": batch,
            "seed": settings.seed,
            "device": str(settings.device),
            "tolerance": tolerance,
            "dtype": "float64",
            "front": "gaussian",
        },
        provenance={**versions(), "device": device_name(settings.device)},
        facts=tuple(facts),
        picture=Picture("components", {"tolerance": tolerance, "limit": batch - 1}),
    )


def _measure(group: list[str], settings: Settings, _: Path | None = None) -> list[dict[str, Any]]:
    found = probe_all(
        group,
        input_shape=_SIZES[settings.scale][0],
        samples=_SIZES[settings.scale][1],
        seed=settings.seed,
        device=settings.device,
        progress=lambda done, total, text: settings.report(done, total, text),
    )
    rows = []
    for result in found:
        said = result.summary()
        code = result.with_tolerance("reference")
        before, after = (_code_dimension(s, result.samples) for s in (result.features_before, result.features_after))
        rows.append(
            {
                "component": result.name,
                "label": result.label,
                "dimension_before": said["dimension_before"],
                "dimension_after": said["dimension_after"],
                "dimension_before_reference": before,
                "dimension_after_reference": after,
                "rank_before_paper": said["rank_before"],
                "rank_after_paper": said["rank_after"],
                "rank_before_reference": code.rank_before.value,
                "rank_after_reference": code.rank_after.value,
                "expected_exact": said["expected_exact"],
                "expected_numerical": said["expected_numerical"],
                "at_sample_limit": bool(said["at_sample_limit"]),
            }
        )
    return rows


def _code_dimension(eigenvalues: Spectrum, samples: int) -> int:
    """PCA dimension with as many eigenvalues as the authors' code has: min(samples, width)."""
    return eigenvalues.rank(Tolerance(rtol=EPS32 * min(samples, eigenvalues.shape[0]))).value


def _disagreement(rows: list[dict[str, Any]], size: int) -> str:
    pairs = ", ".join(
        f"{r['label']} {r['rank_after_paper']:,} against {r['rank_after_reference']:,}"
        for r in rows
        if r["component"] in _PAPER
    )
    return (
        f"The text counts singular values down to eps32·{size} of the largest. The authors' code takes the default "
        f"rank of a float32 Gram matrix, which counts them down to √(eps32·{size}). The Jacobian ranks after the "
        f"component are, text against code: {pairs}."
    )
