"""What a comparison needs of a run, whatever kind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rankscope._base.errors import UsageError, nearest, parameter
from rankscope.features.feature_profile import FeatureProfile
from rankscope.jacobian import JacobianProfile
from rankscope.views.phrases import shape_of

__all__ = ["Run", "run_of"]

_COLUMNS = ("step", "layer", "metric", "value", "samples")


@dataclass(frozen=True)
class Run:
    """One run: numbers by layer, and how they were measured, as texts by the name of the setting."""

    kind: str
    metric: str
    label: str
    layers: Sequence[str]
    values: Sequence[float]
    lower: Sequence[float]
    upper: Sequence[float]
    settings: Mapping[str, tuple[str, ...]]
    images: Sequence[str] = ()
    numbered: bool = False
    per_image: Any = None
    steps: Sequence[int] = field(default=())


def run_of(given: Any, metric: str | None, *, step: int | None = None) -> Run:
    """A profile, a history or what has one, as a run.

    Raises
    ------
    UsageError
        For anything else, and for a metric that it does not have.
    """
    if isinstance(given, JacobianProfile):
        return _jacobian(given, metric)
    if isinstance(given, FeatureProfile):
        return _features(given, metric)
    history = getattr(given, "history", given)
    if set(_COLUMNS) <= set(getattr(history, "columns", ())):
        return _history(history, metric, step)
    raise UsageError(
        f"a run is a {type(given).__name__}; give a JacobianProfile, a FeatureProfile, or a monitor or its history"
    )


def _jacobian(profile: JacobianProfile, metric: str | None) -> Run:
    if metric not in (None, "jacobian_rank"):
        raise UsageError(f"unknown {parameter('metric')} {metric!r}; Jacobian profiles have 'jacobian_rank'")
    reading = profile.reading
    seen = reading.rank >= 0
    certified: list[bool] = np.any(reading.certified, axis=1).tolist()
    rows = [profile.summary(layer)["function_rank"] for layer in profile.layers]
    nan = float("nan")
    return Run(
        kind="JacobianProfile",
        metric="jacobian_rank",
        label=profile.model,
        layers=[layer.name for layer in profile.layers],
        values=[float(n) for n in reading.function_rank],
        lower=[float(row["lower"]) if ok else nan for row, ok in zip(rows, certified, strict=True)],
        upper=[float(row["upper"]) if ok else nan for row, ok in zip(rows, certified, strict=True)],
        settings={
            "tolerance": (profile.tolerance.name,),
            "columns": (str(profile.columns),),
            "input shape": (shape_of(profile.input_shape),),
            "background": (profile.background,),
            "dtype": (profile.dtype,),
            "images": profile.images,
        },
        images=profile.images,
        numbered=all(name.rpartition(" ")[2].isdigit() for name in profile.images),
        per_image=np.where(seen, reading.rank, np.nan),
    )


def _features(profile: FeatureProfile, metric: str | None) -> Run:
    chosen = "effective_rank" if metric is None else metric
    rows = [layer.to_dict() for layer in profile]
    known = [name for row in rows for name, value in row.items() if isinstance(value, float | int) and name != "scale"]
    if chosen not in known:
        raise UsageError(f"unknown {parameter('metric')} {chosen!r}; {nearest(chosen, {*known})}")
    nan = float("nan")
    bounded = chosen == "pca_dimension"
    return Run(
        kind="FeatureProfile",
        metric=chosen,
        label=str(profile.provenance.get("model", "")),
        layers=[layer.name for layer in profile],
        values=[nan if row.get(chosen) is None else float(row[chosen]) for row in rows],
        lower=[float(row["pca_bounds"][0]) if bounded else nan for row in rows],
        upper=[float(row["pca_bounds"][1]) if bounded else nan for row in rows],
        settings={
            "samples": tuple(dict.fromkeys(f"{row['samples']:,}" for row in rows)),
            "reduce": tuple(dict.fromkeys(row["reduce"] for row in rows)),
        },
    )


def _history(history: Any, metric: str | None, step: int | None) -> Run:
    known = list(dict.fromkeys(history["metric"]))
    chosen = (known or [""])[0] if metric is None else metric
    if chosen not in known:
        raise UsageError(f"the history has no {parameter('metric')} {chosen!r}; {nearest(chosen, known)}")
    found = history[history["metric"] == chosen]
    at = int(found["step"].max()) if step is None else step
    here = found[found["step"] == at]
    nan = [float("nan")] * len(here)
    return Run(
        kind="history",
        metric=chosen,
        label="",
        layers=list(here["layer"]),
        values=[float(v) for v in here["value"]],
        lower=nan,
        upper=nan,
        settings={"samples": tuple(f"{n:,}" for n in dict.fromkeys(here["samples"]))},
        steps=sorted({int(s) for s in found["step"]}),
    )
