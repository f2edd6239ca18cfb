"""How tangents were pushed and what certifies a rank, as words inside a sentence."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, counted, probability

__all__ = ["WAY_PHRASES"]


WAY_PHRASES: Sentences = {
    FactKind.PUSHED: lambda v: str(v["name"]),
    FactKind.LINEARISED: lambda v: f"linearised network; agrees with {v['name']} to {max(v['difference'], 1e-16):.0e}",
    FactKind.KEPT_IMAGES: lambda v: "read from finished images",
    FactKind.PROBES: lambda v: (
        f"{counted(v['probes'], 'float64 probe')}, failure probability {probability(v['failure'])}"
    ),
    FactKind.SCALED_PROBES: lambda v: (
        f"an estimate: the float32 error, measured with {counted(v['probes'], 'probe')} and scaled to float64"
    ),
    FactKind.NARROW_PROBES: lambda v: (
        f"an estimate: {counted(v['probes'], 'probe')}, but the model casts to lower precision inside"
    ),
    FactKind.TWO_PRECISIONS: lambda v: (
        f"float32 against float64 on {counted(v['probes'], 'Gaussian tangent')}; each bound fails with probability "
        f"{probability(v['failure'])}"
    ),
    FactKind.NOT_IN_BOTH: lambda v: "none: the component does not run in both precisions",
    FactKind.NOT_IN_FLOAT64: lambda v: "none: the model does not run in float64",
    FactKind.IN_DOUBT: lambda v: "none: the derivative is in doubt, or the two precisions drew different masks",
    FactKind.NOT_CERTIFIED: lambda v: "not asked for",
    FactKind.NO_COMMON_PATH: lambda v: "none: the model calls other modules in float64 than in float32",
}
