"""Sentences of the facts about a matrix-free rank."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, gibibytes, joined, probability

__all__ = ["DENSITY_SENTENCES"]


def _steps(v: Values) -> str:
    wide = f"the quadrature bracket at tolerance {v['tolerance']} is {v['bracket']:.2%} of all singular values"
    if v["reason"] == "invariant":
        return f"After {v['steps']:,} Lanczos steps every Krylov space is invariant; {wide}."
    if v["reason"] == "bracket":
        return f"Lanczos stopped after {v['steps']:,} steps: {wide}, below the {v['asked']:.2%} asked for."
    if v["reason"] == "asked":
        return f"Lanczos took the {v['steps']:,} steps asked for; {wide}."
    why = "memory budget" if v["reason"] == "memory" else "limit on steps"
    return f"Lanczos stopped after {v['steps']:,} steps at the {why}: {wide}, not the {v['asked']:.2%} asked for."


def _products(v: Values) -> str:
    return (
        f"The products' error was measured against float64 with {counted(v['probes'], 'probe')}; its bound fails with "
        f"probability {probability(v['failure'])}."
    )


def _unchecked(v: Values) -> str:
    return f"The {v['dtype']} products were not compared with float64. The rank is therefore not certified."


def _chosen(v: Values) -> str:
    need = f"the exact spectrum needs {gibibytes(v['exact'])}, the memory budget is {gibibytes(v['budget'])}"
    if v["name"] == "exact":
        return f"The rank is computed from the exact spectrum: {need}."
    return f"The rank is estimated with Lanczos probes, which need {gibibytes(v['lanczos'])}: {need}."


def _absent(v: Values) -> str:
    return f"Lanczos moments do not bound {joined(v['names'])}."


DENSITY_SENTENCES: Sentences = {
    FactKind.LANCZOS_STEPS: _steps,
    FactKind.PRODUCTS_CHECKED: _products,
    FactKind.PRODUCTS_UNCHECKED: _unchecked,
    FactKind.SPECTRUM_WAY: _chosen,
    FactKind.NOT_FROM_MOMENTS: _absent,
}
