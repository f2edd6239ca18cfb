"""Names in any script in figures: each letter has a font that has it, or one warning says what to install."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

import rankscope as rs
from rankscope._base import glyphs
from rankscope._base.errors import GlyphWarning
from rankscope._base.style import figure_style, new_axes
from rankscope.cli.main import main

HOOKED = "\N{LATIN SMALL LETTER K WITH PALATAL HOOK}"  # of the fonts that matplotlib brings, only STIX has it
JAPANESE = "日本"
BROUGHT = str(Path(mpl.get_data_path()).resolve())


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Only matplotlib's own fonts are installed, and nothing was said or looked up before."""
    manager = font_manager.fontManager
    mine = [entry for entry in manager.ttflist if str(Path(entry.fname).resolve()).startswith(BROUGHT)]
    monkeypatch.setattr(manager, "ttflist", mine)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_: [])
    monkeypatch.setattr(glyphs, "_said", set())
    forget = [glyphs._families.cache_clear, glyphs._installed_since.cache_clear]
    for clear in forget:
        clear()
    yield monkeypatch
    for clear in forget:
        clear()


def saved(name: str, kind: str = "png") -> tuple[Any, list[str]]:
    """The title of such a figure, and what is said when it is saved, twice."""
    with figure_style():
        ax = new_axes()
        ax.set_title(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            ax.figure.savefig(io.BytesIO(), format=kind)
    return ax.title, [f"{w.category.__name__}: {w.message}" for w in said]


def holds(family: str, letter: str) -> bool:
    file = font_manager.findfont(font_manager.FontProperties(family=family))
    return bool(FT2Font(str(file)).get_char_index(ord(letter)))


def test_a_letter_is_taken_from_a_font_that_has_it(fonts: pytest.MonkeyPatch) -> None:
    assert not holds("DejaVu Sans", HOOKED)
    title, said = saved(f"layer {HOOKED}")
    own, *behind = title.get_fontfamily()
    assert own == "sans-serif"  # everything else keeps the style's font
    assert len(behind) == 1
    assert holds(behind[0], HOOKED)
    assert said == []


def test_a_text_that_needs_none_keeps_its_family(fonts: pytest.MonkeyPatch) -> None:
    title, said = saved("σ₁ ≥ τ, слой, layer…")
    assert title.get_fontfamily() == ["sans-serif"]
    assert said == []


def test_a_font_that_was_installed_after_matplotlib_made_its_list(fonts: pytest.MonkeyPatch) -> None:
    manager = font_manager.fontManager
    stix = [entry for entry in manager.ttflist if entry.name.startswith("STIX")]
    fonts.setattr(manager, "ttflist", [entry for entry in manager.ttflist if entry not in stix])
    fonts.setattr(font_manager, "findSystemFonts", lambda *_: ["no such file.ttf", *(e.fname for e in stix)])
    title, said = saved(HOOKED)
    assert title.get_fontfamily()[1].startswith("STIX")
    assert said == []


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_letters_of_no_font_are_said_once_with_the_remedy(fonts: pytest.MonkeyPatch, kind: str) -> None:
    _, said = saved(f"{JAPANESE} {HOOKED}", kind)
    assert said == [
        "GlyphWarning: no installed font has 日 本: the figure shows boxes in their place. Install a font that has "
        "them (Noto Sans CJK for Chinese, Japanese and Korean), or save the figure as SVG."
    ]
    assert saved(JAPANESE, kind)[1] == []


def test_an_svg_file_needs_no_font(fonts: pytest.MonkeyPatch) -> None:
    with figure_style():
        assert saved(JAPANESE, "svg")[1] == []
    assert issubclass(GlyphWarning, UserWarning)


def test_matplotlib_says_nothing_of_weights(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("matplotlib.font_manager")
    for quiet, lines in ((True, 0), (False, 1)):
        with glyphs._quiet() if quiet else contextlib.nullcontext():
            logger.warning("findfont: Failed to find font weight")
        assert len(caplog.records) == lines


def test_other_warnings_of_matplotlib_are_about_the_callers_line() -> None:
    with figure_style():
        ax = new_axes(0.2, 0.2)
        ax.set_title("much too long for so small a figure")
    with pytest.warns(UserWarning, match="constrained_layout not applied") as said:
        ax.figure.savefig(io.BytesIO())
    assert {w.filename for w in said} == {__file__}


def test_a_command_says_it_in_one_line(
    fonts: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net():\n    made = nn.Sequential()\n"
        f"    made.add_module({JAPANESE!r}, nn.Linear(3, 3))\n    made.input_size = (3,)\n    return made.eval()\n"
    )
    assert (
        main(
            [
                "profile",
                f"{tmp_path / 'net.py'}:net",
                "--images",
                "noise",
                "--no-certify",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "font" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: no installed font has 日 本:")
    assert rs.JacobianProfile.load(tmp_path / "out").layers[0].name == JAPANESE
