"""Names that a user's modules, classes and files may have are drawn letter by letter, in every figure and page."""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from rankscope._base.facts import Fact
from rankscope._base.style import figure_style, new_axes, plain_text
from rankscope._base.text import one_line
from rankscope.jacobian import JacobianProfile, Layer
from rankscope.jacobian.directions import Directions
from rankscope.report import profile_page
from rankscope.spectra import Spectrum, Tolerance

NASTY = [
    r"$\frac{a$",
    "<b>",
    "_x_",
    "$x$",
    "x" * 300,
    "слой",
    "層",
    "a\nb",
    "a\x00b",
    "\udc80",
    "",
    "&amp;",
    r"\$",
    "$$$",
    "%s",
]
names = st.sampled_from(NASTY) | st.text(alphabet=st.characters(), max_size=30)


def profile(name: str, *, images: int = 2) -> JacobianProfile:
    spectra = tuple(Spectrum(np.array([1.0, 0.5, 1e-9]), (5, 3), "float32", 1e-6) for _ in range(images))
    layers = tuple(Layer(f"{name}{k}" if k else name, 5, 3, True, spectra) for k in range(3))
    return JacobianProfile(
        model=name, layers=layers, images=(name, "b")[:images], tolerance=Tolerance.paper(), weights=name,
        columns=Directions("patch", 3, name), background="image", device="cpu", dtype="float32", versions={},
        input_shape=(3,), unmeasured={name: name}, skipped={name: name}, facts=(Fact("note", {"text": name}),),
        provenance={name: name},
    )  # fmt: skip


def drawn(figure: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        for kind in ("svg",):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=40)
            if kind == "svg":
                ET.fromstring(buffer.getvalue())


@settings(max_examples=6, deadline=None)
@given(name=names)
def test_r5_any_name_is_drawn_and_printed(name: str) -> None:
    made = profile(name)
    drawn(made.plot(theory=True).figure)
    drawn(made.against_random().plot().figure)
    drawn(made.plot(ax=Figure().add_subplot(), label=name).figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        profile_page(made).html().encode()
    assert one_line(f"{name}2 ") in str(made)  # the last layer's line


@pytest.mark.parametrize("name", [r"$\frac{a$", r"$\frac{a}{b$ x $", "$x$", "<b>", "a & b", "слой"])
def test_r5_a_name_is_plain_text_in_the_figure_and_escaped_in_the_page(name: str) -> None:
    made = profile(name)
    buffer = io.StringIO()
    made.plot().figure.savefig(buffer, format="svg")
    with figure_style():
        buffer = io.StringIO()
        made.plot().figure.savefig(buffer, format="svg")
    texts = ["".join(e.itertext()) for e in ET.fromstring(buffer.getvalue()).iter("{http://www.w3.org/2000/svg}text")]
    assert name in texts  # the tick, letter by letter
    page = profile_page(made).html()
    assert page.count("<b>") == page.count("<b>Caution:</b>")  # the template's own
    if name == "<b>":
        assert "&lt;b&gt;" in page


def test_r5_a_leading_underscore_does_not_hide_a_model() -> None:
    legend = replace(profile("a"), model="_x_").plot().get_legend()
    assert any("_x_" in text.get_text() for text in legend.get_texts())


def test_a_long_name_loses_its_middle_and_the_axes_keep_their_room() -> None:
    assert plain_text("a" * 60 + "b" * 60, 11) == "aaaaa…bbbbb"
    assert plain_text("short", 5) == "short"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "axes sizes collapsed to zero"
        drawn(profile("x" * 300).plot().figure)


@settings(max_examples=60, deadline=None)
@given(text=names)
def test_plain_text_is_no_formula_and_breaks_no_line(text: str) -> None:
    ax = new_axes(1.0, 1.0)
    label = ax.set_title(plain_text(text))
    shown, is_formula = label._preprocess_math(label.get_text())
    assert not is_formula
    assert shown.removeprefix("\N{HAIR SPACE}").isprintable()
    assert len(shown) <= 41
