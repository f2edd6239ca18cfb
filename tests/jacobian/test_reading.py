"""A reading holds what the spectra say one by one, is computed once, and everything else is read off it."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.jacobian import JacobianProfile, Layer
from rankscope.jacobian import layer as profile_module
from rankscope.jacobian.directions import Directions
from rankscope.report import profile_page
from rankscope.spectra import Spectrum, Tolerance

TOLERANCES = [Tolerance.paper(), Tolerance.reference(), Tolerance.torch(), Tolerance(rtol=0.1), Tolerance(atol=0.5)]


def made(*rows: tuple[Spectrum | None, ...], true_cut: bool = True, **options: Any) -> JacobianProfile:
    """A profile of these spectra, one row per cut point."""
    layers = []
    for k, row in enumerate(rows):
        shape = next((s.shape for s in row if s is not None), (3, 4))
        layers.append(Layer(f"layer{k}", *shape, true_cut, row))
    given: dict[str, Any] = {
        "model": "made", "layers": tuple(layers), "images": tuple(f"image {i}" for i in range(len(rows[0]))),
        "tolerance": Tolerance.paper(), "columns": Directions("all", layers[0].columns, "all input coordinates"),
        "background": "image", "device": "cpu", "dtype": "float32", "versions": {}, "input_shape": (layers[0].columns,),
    }  # fmt: skip
    return JacobianProfile(**given | options)


def counted(sigma: list[float], shape: tuple[int, int], dtype: str, e: float, square: float, tol: Tolerance) -> Any:
    """Rank and bounds by the definition, value by value."""
    rtol = {
        "paper": 2.0**-23 * min(shape),
        "reference": math.sqrt(2.0**-23 * shape[1]),
        "torch": (2.0**-23 if dtype == "float32" else 2.0**-52) * max(shape),
    }.get(tol.rule, tol.rtol or 0.0)
    top = sigma[0]
    tau = max(rtol * top, tol.atol or 0.0)
    strict = tol.rule in ("reference", "torch")
    value = sum((s > tau if strict else s >= tau) and s > 0 for s in sigma)
    if math.isnan(e):
        return value, 0, min(shape), tau
    unit = top or 1.0
    slack = (1 + rtol) * e + (rtol * square / top if top else 0.0)
    high, low = (tau + slack) / unit, max(tau - slack, 0.0) / unit
    relative = square / unit / unit
    lower = sum((s / unit) * (s / unit) - relative >= high * high and s > 0 for s in sigma)
    upper = sum((s / unit) * (s / unit) + relative >= low * low for s in sigma)
    if top == 0 and e == 0:
        upper = 0
    return value, min(lower, value), max(upper, value), tau


values = st.lists(st.sampled_from([0.0, 1e-200, 1e-5, 9.2e-5, 1e-3, 0.5, 1.0, 1e200]), min_size=3, max_size=3)
spectra = st.none() | st.builds(
    lambda s, shape, dtype, e, q: Spectrum(np.array(s), shape, dtype, e, q),
    values | st.lists(st.floats(0, 1e3), min_size=3, max_size=3),
    st.sampled_from([(3, 4), (50, 3)]),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([0.0, 1e-6, 1e-3, math.nan]),
    st.sampled_from([0.0, 1e-12, 1e-6]),
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(spectra, spectra, spectra), min_size=1, max_size=4), tolerance=st.sampled_from(TOLERANCES)
)
def test_a_reading_is_its_spectra_one_by_one(rows: list[Any], tolerance: Tolerance) -> None:
    found = made(*rows, tolerance=tolerance).reading
    for k, row in enumerate(rows):
        for i, s in enumerate(row):
            if s is None:
                assert found.rank[k, i] == found.lower[k, i] == found.upper[k, i] == -1
                assert np.isnan(found.threshold[k, i])
                assert not found.certified[k, i]
                continue
            one = s.rank(tolerance)
            here = (found.rank[k, i], found.lower[k, i], found.upper[k, i], found.threshold[k, i])
            assert here == (one.value, one.lower, one.upper, one.threshold)
            assert here == counted(
                s.singular_values.tolist(), s.shape, s.dtype, s.error_bound, s.square_error, tolerance
            )
            assert found.margin[k, i] == one.margin
            assert found.certified[k, i] == one.certified


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(spectra, spectra, spectra), min_size=1, max_size=4))
def test_rows_are_the_spectra_s_minima_medians_and_maxima(rows: list[Any]) -> None:
    profile = made(*rows)
    least: int | None = None
    for row, said, rank in zip(rows, profile.reading.rows, profile.function_rank, strict=True):
        seen = [s for s in row if s is not None]
        each = [s.rank("paper") for s in seen]
        assert said["images"] == len(seen)
        assert said["not_finite_images"] == 3 - len(seen)
        assert said["zero_images"] == sum(s.is_zero for s in seen)
        assert rank == max((e.value for e in each), default=0)
        expected = max(0, rank - least) if least is not None else 0
        assert said["rises_by"] == expected
        least = rank if least is None else min(least, rank)
        if not seen:
            assert said["rank"]["median"] is None
            continue
        for name, of in (("min", min), ("median", statistics.median), ("max", max)):
            assert said["rank"][name] == of(e.value for e in each)
        assert said["certified"] == all(e.certified for e in each)
        assert said["function_rank"]["lower"] == max(e.lower for e in each)
        assert said["rank"]["lower"] == min(e.lower for e in each)
        # sums of three terms in another order: a few units in the last place
        for name in ("effective_rank", "stable_rank"):
            assert said[name] == pytest.approx(statistics.median(getattr(s, name) for s in seen), rel=1e-14)


def uncertified() -> JacobianProfile:
    bare = Spectrum(np.array([1.0, 0.5, 1e-9]), (3, 4), "float32", math.nan)
    sure = replace_bound(bare, 1e-4)
    return made((bare, bare), (bare, sure), (sure, sure))


def replace_bound(spectrum: Spectrum, bound: float) -> Spectrum:
    return Spectrum(spectrum.singular_values, spectrum.shape, spectrum.dtype, bound)


def test_k9_an_uncertified_row_says_so_and_nothing_of_the_threshold() -> None:
    profile = uncertified()
    text = str(profile).splitlines()
    first, second, third = (next(line for line in text if line.startswith(f"layer{k}")) for k in range(3))
    assert first.endswith("not certified")
    assert "near τ" not in first
    assert second.endswith("1 near τ, not certified")  # of the one image whose bound is known
    assert third.endswith("1 near τ")
    assert profile.table()["near_threshold"].tolist() == [0, 1, 1]
    assert "max = function rank, without certified bounds (not asked for)." in "\n".join(text)


def test_k14_every_spectrum_is_read_once_whatever_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [tuple(Spectrum(np.sort(rng.random(8))[::-1], (9, 8), "float32", 1e-6) for _ in range(5)) for _ in range(4)]
    read: list[tuple[int, str]] = []
    plain = profile_module.read_layer

    def counting(spectra: Any, tolerance: Tolerance) -> Any:
        read.append((id(spectra), tolerance.name))
        return plain(spectra, tolerance)

    def alone(*_: Any) -> Any:
        raise AssertionError("a spectrum was ranked on its own")

    monkeypatch.setattr(profile_module, "read_layer", counting)
    monkeypatch.setattr(Spectrum, "rank", alone)
    profile = made(*rows)
    str(profile), profile.table(), profile.per_image(), profile.to_dict(), profile.rises(), repr(profile)
    profile.against_random(), profile.plot(theory=True)
    assert len(read) == len({*read}) == 4  # one tolerance, four cut points
    profile_page(profile).html()
    profile.with_tolerance("reference").table()
    str(replace(profile, model="again"))
    assert len(read) == len({*read}) == 3 * 4  # paper, reference and torch


def test_a_summary_is_the_caller_s_own() -> None:
    profile = uncertified()
    profile.summary(profile.layers[0])["rank"]["min"] = -5
    profile.summary(profile.layers[0]).pop("name")
    assert profile.summary(profile.layers[0])["rank"]["min"] == 2
    assert profile.table()["layer"].tolist() == ["layer0", "layer1", "layer2"]


def test_one_row_an_image_in_order() -> None:
    spectrum = Spectrum(np.array([1.0, 0.5, 1e-9]), (3, 4), "float32", 1e-4)
    frame = made((spectrum, None), (spectrum, spectrum)).per_image(0.6)
    assert frame["layer"].tolist() == ["layer0", "layer0", "layer1", "layer1"]
    assert frame["image"].tolist() == ["image 0", "image 1"] * 2
    assert frame["rank"].tolist()[0] == 1
    assert np.isnan(frame["rank"].tolist()[1])
    assert frame["margin"].tolist()[3] == pytest.approx(0.1 / 0.6)


def test_kept_facts_do_not_change_a_reading() -> None:
    profile = uncertified()
    again = replace(profile, facts=(Fact(FactKind.NO_GRAPH),))
    assert again.function_rank == profile.function_rank == rs.JacobianProfile.function_rank.fget(again)
