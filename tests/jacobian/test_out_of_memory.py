"""Memory that runs out within a full Jacobian: less at once and said, or one error that names what needs less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.jacobian import JacobianProfile
from rankscope.jacobian.full_plan import plan_for
from rankscope.jacobian.sweep import Sweep
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.linearise import Linearised
from rankscope.linear.matrix import Matrix
from rankscope.spectra import deflation
from rankscope.spectra.lanczos import LanczosProcess, SquaredMap

LACK = "CUDA out of memory. Tried to allocate 2.00 GiB"
STEPS = rs.Lanczos(probes=4, steps=12)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 60), nn.GELU(), nn.Linear(60, 50)).eval()


def _measured(method: rs.Lanczos | str = STEPS, **options: Any) -> JacobianProfile:
    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    given = {"cut_points": ["0", "2"], "tolerance": 0.1, "progress": False, **options}
    return rs.jacobian_rank(_model(), x, columns="all", method=method, **given)


def _lacking(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    plain = getattr(owner, name)

    def run(*args: Any, **given: Any) -> Any:
        if when(*args, **given):
            raise torch.OutOfMemoryError(LACK)
        return plain(*args, **given)

    monkeypatch.setattr(owner, name, run)


@pytest.fixture(autouse=True)
def _by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small as it is, each cut point is measured by products with its Jacobian."""
    monkeypatch.setattr("rankscope.jacobian.full_measurer.plan_for", lambda *a: replace(plan_for(*a), swept=False))

    def way(shape: Any, method: Any, *_: Any) -> str:
        return "lanczos" if isinstance(method, rs.Lanczos) else "exact"

    monkeypatch.setattr("rankscope.jacobian.full_plan.way_for", way)
    monkeypatch.setattr("rankscope.spectra.matrix_free.way_for", way)


def _truth() -> dict[str, np.ndarray]:
    """σ of 60 × 40 and 50 × 40, by float64 reverse passes."""
    model, x = _model().double(), torch.randn(1, 40, generator=torch.Generator().manual_seed(1)).double()
    parts = {"0": model[:1], "2": model}
    made = {name: torch.autograd.functional.jacobian(part, x).reshape(-1, 40) for name, part in parts.items()}
    return {name: np.linalg.svd(found.numpy(), compute_uv=False) for name, found in made.items()}


def _holds(found: JacobianProfile) -> None:
    truth = _truth()
    assert [layer.name for layer in found.layers] == ["0", "2"]
    for layer in found.layers:
        sigma, rank = truth[layer.name], layer.spectra[0].rank(0.1)
        assert rank.certified
        assert rank.lower <= int((sigma >= 0.1 * sigma[0]).sum()) <= rank.upper
        if isinstance(layer.spectra[0], rs.Spectrum):
            np.testing.assert_allclose(layer.spectra[0].singular_values, sigma, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "shared", "dtype"),
    [
        (STEPS, True, torch.float64),
        (STEPS, False, torch.float32),
        (STEPS, False, torch.float64),
        ("exact", True, torch.float64),
        ("exact", False, torch.float64),
        ("auto", False, torch.float32),
    ],
)
def test_fewer_tangents_at_once(monkeypatch: pytest.MonkeyPatch, method: Any, shared: bool, dtype: torch.dtype) -> None:
    """On the pushes to all cut points, which are the checks' own, and on those to one."""

    def lacks(self: LinearMap, tangents: Tensor, rows: Any = None) -> bool:
        return len(tangents) > 2 and self.dtype == dtype and (len(self.runner.keys) > 1) == shared

    _lacking(monkeypatch, LinearMap, "push", lacks)
    tolerance = 1e-5 if dtype == torch.float64 and not shared else 0.1
    found = _measured(method, tolerance=tolerance)
    _holds(found)
    said = of_kind(found.facts, FactKind.SMALLER_CHUNK)
    assert said
    assert all(1 <= fact["chunk"] <= 2 and not fact["alone"] for fact in said)
    assert any(note.startswith("Memory ran out at '0'. From there on ") for note in found.notes)


def test_the_shared_push_does_not_fit_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then each cut point is pushed to alone."""
    _lacking(monkeypatch, LinearMap, "push", lambda self, *_: len(self.runner.keys) > 1 and self.dtype == torch.float64)
    found = _measured()
    _holds(found)
    assert of_kind(found.facts, FactKind.SMALLER_CHUNK)[0]["chunk"] == 1


def test_cotangents_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which pulls several together."""
    _lacking(monkeypatch, LinearMap, "pull", lambda self, parts, together=1: together > 1)
    monkeypatch.setattr(Matrix, "_together", lambda self, count: 4 if self.batched else 1)
    found = _measured()
    _holds(found)
    assert of_kind(found.facts, FactKind.SMALLER_CHUNK)[0]["alone"]


def test_the_traced_network_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own passes serve, and the result says which way that is."""
    _lacking(monkeypatch, Linearised, "here", lambda *_: True)
    found = _measured()
    _holds(found)
    assert found.method.kind is FactKind.PUSHED
    assert any(fact.kind is FactKind.WAY_GIVEN_UP and LACK in fact["reason"] for fact in found.failed_methods)


@pytest.mark.parametrize("name", ["again", "_orthogonalise"])
def test_lanczos_keeps_the_steps_it_took(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    taken: list[Any] = []
    whole = _measured()

    def lacks(self: LanczosProcess | SquaredMap, *_: Any) -> bool:
        taken.append(self)
        return sum(each is self for each in taken) > (6 if name == "again" else 12)

    _lacking(monkeypatch, SquaredMap if name == "again" else LanczosProcess, name, lacks)
    monkeypatch.setattr("rankscope.jacobian.full_measurer.expected_seconds", lambda *_: 1.0)
    found = _measured()
    _holds(found)
    for layer in found.layers:
        (said,) = of_kind(layer.spectra[0].facts, FactKind.LANCZOS_STEPS)
        assert (said["steps"], said["reason"], said.caution) == (6, "ran out", True)
        np.testing.assert_array_equal(layer.spectra[0].alpha, whole[layer.name].spectra[0].alpha[:, :6])
        np.testing.assert_array_equal(layer.spectra[0].beta, whole[layer.name].spectra[0].beta[:, :6])


def test_leading_singular_values_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    _lacking(monkeypatch, deflation, "_orthonormal", lambda *_: True)
    found = _measured(rs.Lanczos(probes=2, steps=6), cut_points=["0"], tolerance=0.5)
    assert of_kind(found["0"].spectra[0].facts, FactKind.LEADING_NO_ROOM)
    assert not len(found["0"].spectra[0].leading)


EVERYWHERE: dict[str, tuple[Any, str, Any]] = {
    "the Gram matrix": (torch.Tensor, "addmm_", "exact"),
    "its eigenvalues": (torch.linalg, "eigvalsh", "exact"),
    "the certificate's pull": (LinearMap, "pull", STEPS),
    "every push": (LinearMap, "push", STEPS),
    "the first step": (LanczosProcess, "_orthogonalise", STEPS),
    "float64 on the piece": (LinearMap, "on_piece", STEPS),
    "a sweep": (Sweep, "_columns", "auto"),
}


@pytest.mark.parametrize("where", EVERYWHERE)
def test_else_one_error_names_what_needs_less(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    owner, name, method = EVERYWHERE[where]
    if where == "a sweep":
        monkeypatch.setattr("rankscope.jacobian.full_measurer.plan_for", plan_for)
    model = _model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _lacking(monkeypatch, owner, name, lambda *_, **__: True)
    monkeypatch.setattr("rankscope.jacobian.full_measurer.expected_seconds", lambda *_: 1.0)
    with pytest.raises(rs.DeviceError, match=r"^memory ran out \(CUDA out of memory.*\); give a smaller memory_budget"):
        rs.jacobian_rank(model, torch.randn(1, 40), cut_points=["0", "2"], columns="all", method=method, progress=False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
