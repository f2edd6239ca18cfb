"""Sentences of the facts about a matrix-free rank."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, in_memory, joined, probability, was

__all__ = ["DENSITY_SENTENCES"]


def _steps(v: Values) -> str:
    wide = f"the quadrature bracket at tolerance {v['tolerance']} is {v['bracket']:.2%} of all singular values"
    if v["reason"] == "invariant":
        return f"After {counted(v['steps'], 'Lanczos step')} every Krylov space is invariant; {wide}."
    if v["reason"] == "bracket":
        return f"Lanczos stopped after {counted(v['steps'], 'step')}: {wide}, below the {v['asked']:.2%} asked for."
    if v["reason"] == "asked":
        return f"Lanczos took the {counted(v['steps'], 'step')} asked for; {wide}."
    why = {"memory": "at the memory budget", "ran out": "when memory ran out"}.get(v["reason"], "at the limit on steps")
    return f"Lanczos stopped after {counted(v['steps'], 'step')} {why}: {wide}, not the {v['asked']:.2%} asked for."


def _products(v: Values) -> str:
    return (
        f"The products' error was measured against float64 with {counted(v['probes'], 'probe')}; its bound fails with "
        f"probability {probability(v['failure'])}."
    )


def _unchecked(v: Values) -> str:
    return f"The {v['dtype']} products were not compared with float64. The rank is therefore not certified."


def _plan(v: Values) -> str:
    parts = []
    if v["exact"]:
        parts.append(
            f"All singular values are computed at {counted(v['exact'], 'cut point')}, where the smaller side of the "
            f"Jacobian is at most {v['side']:,}."
        )
    if v["lanczos"]:
        steps = "as many steps as the bracket needs" if v["steps"] == "auto" else counted(v["steps"], "step")
        parts.append(
            f"At {counted(v['lanczos'], 'cut point')} the rank is estimated with "
            f"{counted(v['probes'], 'Lanczos probe')} and {steps}."
        )
        if v["asked"] == "auto":
            needed, free = in_memory(v["needed"]), in_memory(v["budget"])
            parts.append(f"All singular values would need {needed} or more; the memory budget leaves {free} for them.")
    every = " for every 200 steps" if v["lanczos"] and v["steps"] == "auto" else ""
    parts.append(
        f"Expected on each sample: {_seconds(v['seconds'])}{every} and {in_memory(v['bytes'])} beside the model."
    )
    return " ".join(parts)


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 120 else f"{value / 60:,.0f} min"


def _not_recorded(v: Values) -> str:
    return (
        f"Products were not replayed as a CUDA graph at {v['where']!r}: {v['reason']}. They are slower, with the same "
        "results."
    )


def _smaller_chunk(v: Values) -> str:
    less = [f"{counted(v['chunk'], 'tangent')} {was(v['chunk'])} pushed at once"] if v["chunk"] else []
    less += ["cotangents were pulled one by one"] if v.get("alone") else []
    return f"Memory ran out at {v['where']!r}. From there on {joined(less)}."


def _in_float64(v: Values) -> str:
    return f"At tolerance {v['tolerance']} the error of float32 products would hide the threshold. They are in float64."


def _leading(v: Values) -> str:
    leading = f"the {counted(v['count'], 'leading singular value')} {was(v['count'])}"
    return (
        f"The rank is low: {leading} computed and all others bounded, so at thresholds above that bound the rank is "
        "counted."
    )


def _no_room(v: Values) -> str:
    return (
        "Memory ran out before the leading singular values were computed one by one. The bounds come from the probes."
    )


def _absent(v: Values) -> str:
    return f"Lanczos moments do not bound {joined(v['names'])}."


DENSITY_SENTENCES: Sentences = {
    FactKind.LANCZOS_STEPS: _steps,
    FactKind.PRODUCTS_CHECKED: _products,
    FactKind.PRODUCTS_UNCHECKED: _unchecked,
    FactKind.FULL_PLAN: _plan,
    FactKind.NOT_RECORDED: _not_recorded,
    FactKind.SMALLER_CHUNK: _smaller_chunk,
    FactKind.PRODUCTS_IN_FLOAT64: _in_float64,
    FactKind.LEADING_COUNTED: _leading,
    FactKind.LEADING_NO_ROOM: _no_room,
    FactKind.NOT_FROM_MOMENTS: _absent,
}
