"""Whole Jacobians, interrupted: finished cut points of an unfinished image are kept, for the same question alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind

WAY: dict[str, Any] = {"columns": "all", "method": rs.Lanczos(2, 10), "cut_points": "all"}


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 55), nn.Tanh(), nn.Linear(55, 19)).eval()


def _x() -> torch.Tensor:
    return torch.randn(2, 60, generator=torch.Generator().manual_seed(3))


def _interrupted(folder: Path, at: str, **options: Any) -> None:
    def progress(done: int, total: int | None, text: str) -> None:
        if text.startswith(at):
            raise KeyboardInterrupt("stopped here")

    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        rs.jacobian_rank(_model(), _x(), checkpoint=folder, progress=progress, **(WAY | options))


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The cut points whose spectra are computed from now on."""
    from rankscope.jacobian import full_measurer

    seen: list[int] = []
    before = full_measurer.products_of

    def counting(passes: Any, place: int) -> Any:
        seen.append(place)
        return before(passes, place)

    monkeypatch.setattr(full_measurer, "products_of", counting)
    return seen


def test_it_goes_on_with_the_next_cut_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(tmp_path, "sample 1: 2")
    assert len(list(tmp_path.glob("image-*"))) == 1
    assert len(list(tmp_path.glob("cut-*"))) == 2
    seen = _counted(monkeypatch)
    found = rs.jacobian_rank(_model(), _x(), checkpoint=tmp_path, **WAY)
    assert seen == [2, 3, 4]
    assert of_kind(found.facts, FactKind.CUTS_READ_BACK)[0]["kept"] == 2
    assert of_kind(found.facts, FactKind.READ_BACK)[0]["kept"] == 1
    assert not list(tmp_path.glob("cut-*")), "the image is kept as a whole"
    plain = rs.jacobian_rank(_model(), _x(), **WAY)
    assert [layer.spectra for layer in found.layers] == [layer.spectra for layer in plain.layers]


@pytest.mark.parametrize("what", ["method", "tolerance", "dtype"])
def test_another_question_is_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    _interrupted(tmp_path, "sample 0: 2")
    seen = _counted(monkeypatch)
    other: Any = {"method": rs.Lanczos(2, 12), "tolerance": 1e-2, "dtype": "float64"}[what]
    found = rs.jacobian_rank(_model(), _x(), checkpoint=tmp_path, **(WAY | {what: other}))
    assert seen == [0, 1, 2, 3, 4] * 2
    if what != "dtype":  # of which the input itself is another, and its files have other names
        assert of_kind(found.facts, FactKind.KEPT_OTHER)[0]["count"] == 2


def test_another_model_is_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(tmp_path, "sample 0: 2")
    seen = _counted(monkeypatch)
    rs.jacobian_rank(_model(1), _x(), checkpoint=tmp_path, **WAY)
    assert seen == [0, 1, 2, 3, 4] * 2


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    _interrupted(tmp_path, "sample 0: 2")
    file = next(tmp_path.glob("cut-*"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    found = rs.jacobian_rank(_model(), _x(), checkpoint=tmp_path, **WAY)
    assert of_kind(found.facts, FactKind.KEPT_DAMAGED)[0]["unit"] == "cut point"


class Steered(nn.Module):
    """A derivative that no weight, buffer or attribute shows."""

    scale: ClassVar[list[float]] = [1.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale[0]


@pytest.mark.parametrize("at", ["sample 0: 1", "sample 1: 1"])
def test_a_new_product_shows_another_derivative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """A cut point or a whole image that is kept: one product of each is compared before any of it is used."""
    model = nn.Sequential(Steered(), nn.Linear(60, 30)).eval()
    monkeypatch.setattr("rankscope.jacobian.measure.identity_of", lambda model: rs._base.identity.Identity("same"))

    def progress(done: int, total: int | None, text: str) -> None:
        if text.startswith(at):
            raise KeyboardInterrupt("stopped here")

    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        rs.jacobian_rank(model, _x(), checkpoint=tmp_path, progress=progress, **WAY)
    monkeypatch.setattr(Steered, "scale", [1.01])
    found = rs.jacobian_rank(model, _x(), checkpoint=tmp_path, **WAY)
    assert of_kind(found.facts, FactKind.KEPT_DIFFERS)
    plain = rs.jacobian_rank(model, _x(), **WAY)
    assert [layer.spectra for layer in found.layers] == [layer.spectra for layer in plain.layers]


class NearTie(nn.Module):
    """Which expert is taken is decided by whether 1 + 2⁻⁴⁰ is more than 1: in float64 alone it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expert = self.right if x[0, 0] > 0 and 1 + x.new_tensor(2.0**-40) > 1 else self.left
        out: torch.Tensor = expert(x)
        return out


@pytest.mark.parametrize("tied", [(0, 1), (0,)])
def test_samples_that_only_rounding_routes_are_resumed(tmp_path: Path, tied: tuple[int, ...]) -> None:
    """What was kept of a sample whose float64 path is another is compared as what is kept of any."""
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    x[:, 0] = -1.0
    x[list(tied), 0] = 1.0
    way = WAY | {"cut_points": ["left"], "method": rs.Lanczos(1, 2), "checkpoint": tmp_path}
    first = rs.jacobian_rank(NearTie().eval(), x, **way)
    again = rs.jacobian_rank(NearTie().eval(), x, **way)
    assert of_kind(again.facts, FactKind.READ_BACK)[0]["kept"] == 2
    for before, after in zip(first["left"].spectra, again["left"].spectra, strict=True):
        assert before.rank() == after.rank()
    assert [s.rank().certified for s in again["left"].spectra] == [i not in tied for i in range(2)]
