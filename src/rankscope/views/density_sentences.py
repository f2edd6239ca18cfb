"""Sentences of the facts about a matrix-free rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rankscope._base.facts import FactKind

__all__ = ["DENSITY_SENTENCES"]

_Values = Mapping[str, Any]


def _steps(v: _Values) -> str:
    wide = f"the quadrature bracket at tolerance {v['tolerance']} is {v['bracket']:.2%} of all singular values"
    if v["reason"] == "invariant":
        return f"After {v['steps']:,} Lanczos steps every Krylov space is invariant; {wide}."
    if v["reason"] == "bracket":
        return f"Lanczos stopped after {v['steps']:,} steps: {wide}, below the {v['asked']:.2%} asked for."
    if v["reason"] == "asked":
        return f"Lanczos took the {v['steps']:,} steps asked for; {wide}."
    why = "memory budget" if v["reason"] == "memory" else "limit on steps"
    return f"Lanczos stopped after {v['steps']:,} steps at the {why}: {wide}, not the {v['asked']:.2%} asked for."


def _products(v: _Values) -> str:
    return (
        f"The products' error was measured against float64 with {v['probes']} probes; its bound fails with probability "
        f"{v['failure']:.0e}."
    )


def _unchecked(v: _Values) -> str:
    return f"The {v['dtype']} products were not compared with float64. The rank is therefore not certified."


def _chosen(v: _Values) -> str:
    need = f"the exact spectrum needs {v['exact'] / 2**30:.3g} GiB, the memory budget is {v['budget'] / 2**30:.3g} GiB"
    if v["name"] == "exact":
        return f"The rank is computed from the exact spectrum: {need}."
    return f"The rank is estimated with Lanczos probes, which need {v['lanczos'] / 2**30:.3g} GiB: {need}."


def _absent(v: _Values) -> str:
    return f"Lanczos moments do not bound {' and '.join(v['names'])}."


DENSITY_SENTENCES: dict[FactKind, Callable[[_Values], str]] = {
    FactKind.LANCZOS_STEPS: _steps,
    FactKind.PRODUCTS_CHECKED: _products,
    FactKind.PRODUCTS_UNCHECKED: _unchecked,
    FactKind.SPECTRUM_WAY: _chosen,
    FactKind.NOT_FROM_MOMENTS: _absent,
}
