"""What a comparison needs of a run, whatever kind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from rankscope._base.errors import UsageError, nearest, parameter
from rankscope.features.feature_profile import FeatureProfile
from rankscope.jacobian import JacobianProfile
from rankscope.views.phrases import shape_of

__all__ = ["Run", "SavedFeatures", "run_of"]

_OF_LAYER = ("name", "samples", "reduce", "pca_bounds")
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


@dataclass(frozen=True)
class SavedFeatures:
    """What ``FeatureProfile.to_dict`` says of each layer: a profile's numbers, without the spectra that make them.

    ``about`` is what else is known of how they were measured.

    Raises ``KeyError`` for rows that are no layers, and ``ValueError`` where there are none.
    """

    model: str
    rows: tuple[Mapping[str, Any], ...]
    kind: str = "feature_rank"
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("it has no layers")
        for row in self.rows:
            for name in _OF_LAYER:
                row[name]


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
        given = SavedFeatures(
            str(given.provenance.get("model", "")),
            tuple(layer.to_dict() for layer in given),
            given.kind,
            given.provenance,
        )
    if isinstance(given, SavedFeatures):
        return _features(given, metric)
    history = getattr(given, "history", given)
    if set(_COLUMNS) <= set(getattr(history, "columns", ())):
        # of a table nothing says what its steps count: a monitor's count optimiser steps
        unit = getattr(given, "unit", "step") if history is not given else "step"
        return _history(history, unit, getattr(given, "provenance", {}), metric, step)
    if isinstance(given, str | PurePath):
        raise UsageError(
            f"a run is the path {str(given)!r}; load it first (JacobianProfile.load, FeatureProfile.load), or run "
            "rankscope compare, which takes paths"
        )
    raise UsageError(
        f"a run has the type {type(given).__name__!r}; give a JacobianProfile, a FeatureProfile, or a monitor or its "
        "history"
    )


def _known(about: Mapping[str, Any], *names: str) -> dict[str, tuple[str, ...]]:
    return {name: (str(about[name]),) for name in names if about.get(name) is not None}


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


def _features(given: SavedFeatures, metric: str | None) -> Run:
    rows, chosen = given.rows, "effective_rank" if metric is None else metric
    known = [name for row in rows for name, value in row.items() if isinstance(value, float | int) and name != "scale"]
    if chosen not in known:
        raise UsageError(f"unknown {parameter('metric')} {chosen!r}; {nearest(chosen, {*known})}")
    nan = float("nan")
    bounded = chosen == "pca_dimension"
    return Run(
        kind="FeatureProfile",
        metric=chosen,
        label=given.model,
        layers=[str(row["name"]) for row in rows],
        values=[nan if row.get(chosen) is None else float(row[chosen]) for row in rows],
        lower=[float(row["pca_bounds"][0]) if bounded else nan for row in rows],
        upper=[float(row["pca_bounds"][1]) if bounded else nan for row in rows],
        settings={
            "what was measured": (given.kind,),
            "samples": tuple(dict.fromkeys(f"{row['samples']:,}" for row in rows)),
            "reduce": tuple(dict.fromkeys(row["reduce"] for row in rows)),
            **_known(given.about, "noise", "data"),
        },
    )


def _history(history: Any, unit: str, about: Mapping[str, Any], metric: str | None, step: int | None) -> Run:
    known = list(dict.fromkeys(history["metric"]))
    if not known:
        raise UsageError("a history is empty; compare runs of which at least one step was monitored")
    chosen = known[0] if metric is None else metric
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
        settings={
            "samples": tuple(f"{n:,}" for n in dict.fromkeys(here["samples"])),
            "what their steps count": (unit,),
            **_known(about, "data"),
        },
        steps=sorted({int(s) for s in found["step"]}),
    )
