"""Fig. 1 (d, e, f): rank and feature dimension of a linear chain of fifty layers under three initialisations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.facts import Fact, FactKind
from rankscope._base.frames import Frame
from rankscope._base.provenance import versions
from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.parts import Parts
from rankscope.reproduce.pictures import Picture
from rankscope.reproduce.settings import Settings
from rankscope.theory import deep_chain, predicted_rank

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CHAINS", "Chain", "chain"]


@dataclass(frozen=True)
class Chain:
    """One panel: its letter, its initialisation as ``deep_chain`` names it, and its title."""

    letter: str
    init: str
    title: str


CHAINS = {
    "fig1d": Chain("d", "normal(0.02)", "Normal N(0, 0.02) initialisation"),
    "fig1e": Chain("e", "kaiming_normal", "Kaiming normal initialisation"),
    "fig1f": Chain("f", "xavier_normal", "Xavier normal initialisation"),
}
# (width, depth, samples, chains): paper, §6.1; its checklist speaks of repetitions without a number
_SIZES = {"full": (1000, 50, 5000, 3), "small": (60, 24, 300, 2)}
_SHOWN = (1, 10, 20, 50)
_WHY = (
    "the paper draws this curve and prints no value; the scale of the weights cancels in a rank, so the paper's panels "
    "d, e and f differ only by noise, and ours, which share their weights up to scale, only by the layer at which "
    "float32 stops them"
)


def chain(name: str, settings: Settings) -> Reproduction:
    """Measure the chains of one panel, one part per seed."""
    import pandas as pd

    panel = CHAINS[name]
    width, depth, samples, count = _SIZES[settings.scale]
    parts = Parts(settings.parts)
    frames, stopped = [], []
    for k in range(count):
        seed = settings.seed + k
        settings.report(k, count, f"chain {k + 1} of {count}")
        given = {"init": panel.init, "width": width, "depth": depth, "samples": samples, "seed": seed}
        found = parts.keep(f"{name}/seed-{seed}", given, lambda _, given=given: _measure(given))  # type: ignore[misc]
        frames.append(pd.DataFrame(found["steps"]))
        stopped.append(found["stopped_at"])
    values = pd.concat(frames, ignore_index=True)
    tolerance = settings.as_printed
    column = f"jacobian_rank_{tolerance}"
    rows = []
    last = int(values["depth"].max())
    for at in sorted({*(d for d in _SHOWN if d <= last), last}):
        there = values[values["depth"] == at]
        rows.append(
            PaperComparison(
                f"Jacobian rank at layer {at}",
                None,
                float(there[column].mean()),
                float(there[f"predicted_{tolerance}"].iloc[0]),
                f"tolerance {tolerance}, " + (f"mean of {len(there)} chains" if len(there) > 1 else "one chain"),
                _WHY,
            )
        )
        rows.append(
            PaperComparison(
                f"feature dimension at layer {at}",
                None,
                float(there["feature_dimension"].mean()),
                float(there["predicted_features"].iloc[0]),
                f"λ ≥ eps32·{width}·λ₁ over {samples:,} samples",
                "the same; the theory assumes many more samples than units, and fewer samples give less",
            )
        )
    ends = [s for s in stopped if s]
    if ends:
        why = "the layer at which every |J| is below 1.19e-7; the paper's curve ends there too but names no layer"
        rows.append(
            PaperComparison("stopped by float32 at layer", None, float(np.mean(ends)), None, "paper, §6.1", why)
        )
    facts = () if settings.full else (Fact(FactKind.SMALL_SCALE, {"sizes": (("width", width), ("depth", depth))}),)
    return Reproduction(
        name=name,
        title=f"Fig. 1 ({panel.letter}): linear chain, {panel.title}",
        as_printed=settings.as_printed,
        numbers=Frame.of(values),
        comparison=tuple(rows),
        disagreement=_disagreement(values, min(last, 20), width),
        settings={
            "as_printed": settings.as_printed,
            "scale": settings.scale,
            "init": panel.init,
            "width": width,
            "depth": depth,
            "samples": samples,
            "seeds": [settings.seed + k for k in range(count)],
            "tolerance": tolerance,
            "float32_stop": True,
            "stopped_at": stopped,
            "dtype": "float64",
        },
        provenance=versions(),
        facts=facts,
        picture=Picture(
            "chain", {"letter": panel.letter, "title": panel.title, "tolerance": tolerance, "width": width}
        ),
    )


def _measure(given: dict[str, Any], _: Path | None = None) -> dict[str, Any]:
    profile = deep_chain(
        width=given["width"],
        depth=given["depth"],
        samples=given["samples"],
        init=given["init"],
        seeds=given["seed"],
        float32_stop=True,
        progress=False,
    )
    run = profile.runs[0]
    ranks = {name: replace(profile, tolerance=_tolerance(name)).jacobian_ranks[0] for name in ("paper", "reference")}
    size = given["width"]
    steps = []
    for step in run.steps:
        at = step.depth
        steps.append(
            {
                "seed": given["seed"],
                "depth": at,
                "jacobian_rank_paper": int(ranks["paper"][at - 1]),
                "jacobian_rank_reference": int(ranks["reference"][at - 1]),
                "feature_dimension": int(profile.feature_dimensions[0, at - 1]),
                "log_sigma_max": step.log_sigma_max,
                "predicted_paper": predicted_rank(size, at, "paper").value,
                "predicted_reference": predicted_rank(size, at, "reference").value,
                "predicted_features": float(profile.predicted[1][at - 1]),
            }
        )
    return {"steps": steps, "stopped_at": run.stopped_at}


def _tolerance(name: str) -> Any:
    from rankscope.spectra import as_tolerance

    return as_tolerance(name)


def _disagreement(values: pd.DataFrame, at: int, width: int) -> str:
    there = values[values["depth"] == at]
    paper, code = there["jacobian_rank_paper"].mean(), there["jacobian_rank_reference"].mean()
    threshold = {name: _tolerance(name).relative((width, width)) for name in ("paper", "reference")}
    return (
        f"The text counts singular values down to eps32·{width} = {threshold['paper']:.2e} of the largest. The "
        f"authors' code takes the default rank of the float32 Gram matrix, which counts those of J down to "
        f"√(eps32·{width}) = {threshold['reference']:.2e} of the largest. At layer {at} the text's rule gives rank "
        f"{paper:.1f} here and the code's {code:.1f}, of {width}."
    )
