"""What the plan of a full Jacobian announces is what is done: the products counted as they are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.jacobian.full_measurer import FullMeasurer
from rankscope.jacobian.full_plan import plan_for
from rankscope.jacobian.full_work import compared_by, work_of
from rankscope.linear.matrix import Matrix


def _tall(dtype: torch.dtype = torch.float32) -> nn.Module:
    """1,200 rows of 1,100 inputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1100, 30), nn.GELU(), nn.Linear(30, 1200)).to(dtype).eval()


def _wide(dtype: torch.dtype = torch.float32) -> nn.Module:
    """700 rows of 1,100 inputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1100, 30), nn.GELU(), nn.Linear(30, 700)).to(dtype).eval()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counter[str], list[Any]]]:
    """Single products that Lanczos and the exact way made, by mode and precision; and the measurers, to ask for plans.

    Nothing is timed, and no leading singular value is taken out.
    """
    counts: Counter[str] = Counter()
    measurers: list[Any] = []
    push, pull, cut = Matrix.push, Matrix.pull, FullMeasurer._cut

    def pushed(self: Matrix, columns: Tensor, rows: Any = None) -> Tensor:
        counts[f"pushed {self.map.dtype}"] += columns.shape[1]
        return push(self, columns, rows)

    def pulled(self: Matrix, columns: Tensor) -> Tensor:
        counts[f"pulled {self.map.dtype}"] += columns.shape[1]
        return pull(self, columns)

    def begun(self: Any, place: int, sample: Any) -> Any:
        counts.clear() if not measurers else None
        measurers.append(self)
        return cut(self, place, sample)

    monkeypatch.setattr(Matrix, "push", pushed)
    monkeypatch.setattr(Matrix, "pull", pulled)
    monkeypatch.setattr(FullMeasurer, "_cut", begun)
    monkeypatch.setattr("rankscope.spectra.matrix_free._with_leading", lambda found, *_: found)
    monkeypatch.setattr("rankscope.jacobian.full_measurer.expected_seconds", lambda *_: 1.0)
    return counts, measurers


CASES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "probes in float32": (_tall, {"method": rs.Lanczos(probes=3, steps=12), "tolerance": 0.05}),
    "probes in float64": (_tall, {"method": rs.Lanczos(probes=3, steps=12), "tolerance": 1e-5}),
    "fewer rows, in float32": (_wide, {"method": rs.Lanczos(probes=3, steps=12), "tolerance": 0.05}),
    "fewer rows, in float64": (_wide, {"method": rs.Lanczos(probes=3, steps=12), "tolerance": 1e-5}),
    "few steps, in float64": (_wide, {"method": rs.Lanczos(probes=3, steps=5), "tolerance": 1e-3}),
    "fewer steps than decide that": (_wide, {"method": rs.Lanczos(probes=3, steps=5), "tolerance": 1e-2}),
    "exact": (_tall, {"method": "exact"}),
    "exact, fewer rows": (_wide, {"method": "exact"}),
    "exact by squares": (_tall, {"method": "exact", "memory_budget": "48MB"}),
    "exact by squares, fewer rows": (_wide, {"method": "exact", "memory_budget": "16MB"}),
    "exact, where float32 serves": (_wide, {"method": "auto", "tolerance": "reference"}),
    "not compared": (_tall, {"method": rs.Lanczos(probes=3, steps=12), "certify": False}),
    "exact, not compared": (_tall, {"method": "exact", "certify": False}),
    "a float64 network": (lambda: _tall(torch.float64), {"method": rs.Lanczos(probes=3, steps=12)}),
    "a float64 network, exact": (lambda: _wide(torch.float64), {"method": "exact"}),
}


@pytest.mark.parametrize("case", CASES)
def test_products_announced_are_products_made(
    case: str, made: tuple[Counter[str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, measurers = made
    make, options = CASES[case]
    monkeypatch.setattr("rankscope.jacobian.full_measurer.plan_for", lambda *a: replace(plan_for(*a), swept=False))
    if isinstance(options["method"], rs.Lanczos):  # small: all products would be the exact way
        monkeypatch.setattr("rankscope.jacobian.full_plan.way_for", lambda *_: "lanczos")
        monkeypatch.setattr("rankscope.spectra.matrix_free.way_for", lambda *_: "lanczos")
    if case == "fewer steps than decide that":
        monkeypatch.setattr("rankscope.spectra.matrix_free.too_rough", lambda *_: False)
    x = torch.randn(1, 1100, generator=torch.Generator().manual_seed(5))
    found = rs.jacobian_rank(
        make(), x, cut_points=["2"], columns="all", progress=False, **{"memory_budget": "512MB", **options}
    )
    (measurer,) = measurers
    plan, derivative = measurer.plan, measurer.derivative
    double = bool(of_kind(getattr(found["2"].spectra[0], "facts", ()), FactKind.PRODUCTS_IN_FLOAT64))
    work = work_of(plan, 0, compared_by(derivative.certificate), precise=double)
    own = str(measurer.settings.dtype)
    other = "torch.float32" if own == "torch.float64" else "torch.float64"
    expected = {
        f"pushed {own}": work.own.pushed, f"pulled {own}": work.own.pulled,
        f"pushed {other}": work.other.pushed, f"pulled {other}": work.other.pulled,
    }  # fmt: skip
    assert dict(counts) == {name: count for name, count in expected.items() if count}
    assert double == case.endswith("in float64")
