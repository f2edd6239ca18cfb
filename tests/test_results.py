"""Every result that is a ``Record`` is equal to itself after a file, and differs from one that holds other numbers."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_record import MADE
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rankscope as rs
from rankscope._base.encoding import exact, read
from rankscope._base.errors import OutputError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.records import Record
from rankscope._base.shown_axes import Panels, ShownAxes
from rankscope._base.style import whole_figure


def _records() -> set[str]:
    for module in pkgutil.walk_packages(rs.__path__, "rankscope."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    found, waiting = set(), [Record]
    while waiting:
        kinds = waiting.pop().__subclasses__()
        found.update(kinds)
        waiting += kinds
    return {c.__name__ for c in found if c.__module__.startswith("rankscope.")}


def test_every_record_is_here() -> None:
    assert _records() == {*MADE}


@pytest.mark.parametrize("name", MADE)
def test_equal_to_itself_after_a_file(name: str, tmp_path: Path) -> None:
    one = MADE[name]()
    found = type(one).load(one.save(tmp_path / "result"))
    assert found == one
    assert hash(found) == hash(one)
    for field in fields(one):  # type: ignore[arg-type]
        if field.init and not field.compare:  # where it lies
            found = replace(found, **{field.name: getattr(one, field.name)})  # type: ignore[type-var]
    assert str(found) == str(one)
    assert found.to_json() == one.to_json()
    with pytest.raises(OutputError, match=r"schema_version|cannot read|no collected run"):
        type(one).load(_other(tmp_path))


def _other(folder: Path) -> Path:
    (folder / "other").mkdir()
    (folder / "other" / "profile.json").write_text('{"kind": "other"}')
    return folder / "other" / "profile.json"


@pytest.mark.parametrize("name", MADE)
def test_other_numbers_are_not_equal(name: str) -> None:
    one = MADE[name]()
    changed = 0
    for field in fields(one):  # type: ignore[arg-type]
        other = _changed(getattr(one, field.name)) if field.compare else None
        if other is not None:
            changed += 1
            assert replace(one, **{field.name: other}) != one, field.name  # type: ignore[type-var]
    assert changed


def _changed(value: Any) -> Any:
    """The same with one number further off, or nothing where there is none to be found."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return value + 1 if np.isfinite(value) else 1.5
    if isinstance(value, np.ndarray) and value.size and value.dtype.kind == "f":
        other = value.copy()
        other.flat[0] = other.flat[0] + 1 if np.isfinite(other.flat[0]) else 1.5
        return other
    if isinstance(value, torch.Tensor):
        return value + 1
    if isinstance(value, rs.Spectrum):
        return replace(value, singular_values=value.singular_values + 1)
    if isinstance(value, tuple):
        for k, inner in enumerate(value):
            other = _changed(inner)
            if other is not None:
                return (*value[:k], other, *value[k + 1 :])
    if is_dataclass(value) and not isinstance(value, type):
        for field in reversed(fields(value)):
            other = _changed(getattr(value, field.name))
            if other is not None and not isinstance(value, rs.Tolerance):
                return replace(value, **{field.name: other})
    return None


DRAWN: dict[str, Callable[[], Any]] = {
    **{name: lambda made=made: made().plot() for name, made in MADE.items()},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", DRAWN)
def test_plot_gives_axes(name: str) -> None:
    axes = DRAWN[name]()
    assert isinstance(axes, Axes)
    assert whole_figure(axes) is whole_figure(np.array([axes, None])) is axes.figure
    assert isinstance(axes, ShownAxes)  # a notebook shows it where it is the value of a cell


def test_a_notebook_shows_what_plot_draws() -> None:
    for axes, panels in ((MADE["RankPrediction"]().plot(), 1), (MADE["RemedyResult"]().side_by_side(), 2)):
        picture, size = axes._repr_png_()
        assert picture.startswith(b"\x89PNG")
        assert size["width"] > 300 * panels
        assert len(whole_figure(axes).axes) == panels
    assert Panels.of([])._repr_png_() is None
    assert axes[0] is axes.flat[0]


def test_axes_of_the_caller_stay_his() -> None:
    own = Figure().add_subplot()
    assert MADE["RankPrediction"]().plot(ax=own) is own
    assert not hasattr(own, "_repr_png_")


OLD = Path(__file__).parent / "golden-old" / "records"


def _class(name: str) -> type[Record]:
    known: type[Record] = getattr(rs, name, None) or getattr(rs.theory, name)
    return known


@pytest.mark.parametrize("name", sorted(file.stem for file in OLD.glob("*.json")))
def test_files_of_an_earlier_version_load(name: str, tmp_path: Path) -> None:
    """With ``convention``, ``mode``, a method and a certificate in words, and a chain's init between brackets."""
    found = _class(name).load(OLD / f"{name}.json")
    assert type(found).load(found.save(tmp_path / "again")) == found
    str(found)
    found.table()
    found.to_json()


def test_what_earlier_files_said_in_words() -> None:
    chain = rs.theory.ChainProfile.load(OLD / "ChainProfile.json")
    assert (chain.init, chain.std, chain.tolerance) == ("orthogonal", None, rs.Tolerance.paper())
    assert chain.input_width == 4  # "inputs" there
    remedies = rs.RemedyResult.load(OLD / "RemedyResult.json")
    assert remedies["plain"].chain.std == pytest.approx((2 / 4) ** 0.5)
    assert remedies["plain"].chain.law.predicts
    assert {one.chain.input_width for one in remedies.curves} == {4, remedies.width}
    probe = rs.ProbeResult.load(OLD / "ProbeResult.json")
    assert probe.method == Fact(FactKind.PUSHED, {"name": "vmap(jvp)"})
    assert probe.certificate.kind is FactKind.TWO_PRECISIONS
    assert [fact.kind for fact in probe.facts] == [FactKind.EARLIER_NOTE]
    exponents = rs.ChainExponents.load(OLD / "ChainExponents.json")
    assert exponents.method == Fact(FactKind.PUSHED, {"name": "vmap(jvp)"})


def test_another_version_is_refused_by_its_number(tmp_path: Path) -> None:
    data = json.loads((OLD / "ChainProfile.json").read_text())
    (tmp_path / "later.json").write_text(json.dumps(data | {"schema_version": 7}))
    with pytest.raises(OutputError, match="has schema_version 7 and kind 'chain_profile'; this version reads 1 and"):
        rs.theory.ChainProfile.load(tmp_path / "later.json")


def test_files_with_earlier_names_of_fields_are_read() -> None:
    """``batch`` of a probe is ``samples``, and ``labels`` of a comparison are ``names``."""
    for kind, old, new in (("ProbeResult", "batch", "samples"), ("Comparison", "labels", "names")):
        made = MADE[kind]()
        plain = json.loads(json.dumps(exact(made)))
        plain[old] = plain.pop(new)
        assert read(type(made), plain) == made
