"""Letters of every script in figures: the installed fonts that have them stand behind the style's own.

matplotlib takes each letter from the first font of a text's families that has it. The style's font has Latin, Greek and
Cyrillic; a name in another script gets the families that it needs when the figure is drawn.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from rankscope._base.errors import GlyphWarning

__all__ = ["LetteredFigure", "complete_letters"]

_EVERY_FONT_HAS = 0x250  # the letters before are ASCII and the extensions of Latin
_LAST_RESORT = "Last Resort"  # matplotlib's: boxes for every letter that there is
_SHOWN = 8
_said: set[str] = set()


class LetteredFigure(Figure):
    """A figure whose texts have the fonts that their letters need. Where none is installed a warning says so, once."""

    def draw(self, renderer: Any) -> None:
        with _quiet() as others:
            missing = complete_letters(self) - _said
            super().draw(renderer)
        # a viewer of SVG has fonts of its own
        if missing and not type(self.canvas).__module__.endswith("backend_svg"):
            _said.update(missing)
            warnings.warn(_words(missing), GlyphWarning, stacklevel=2)
        for other in others:
            warnings.warn(other.message, other.category, stacklevel=_caller())


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Without what matplotlib says of each letter, and of fonts that come in one weight only; its other warnings."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield said
        finally:
            logger.setLevel(level)


def _caller() -> int:
    """How many frames above ``draw`` matplotlib was called: its warnings are about that line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (level == 1 or frame.f_globals.get("__name__", "").startswith("matplotlib")):
        frame, level = frame.f_back, level + 1
    return level


def complete_letters(figure: Figure) -> set[str]:
    """Give every text of the figure the families that its letters need; returns the letters that no font has."""
    absent: set[str] = set()
    for text in figure.findobj(Text):
        if isinstance(text, Text) and any(ord(letter) >= _EVERY_FONT_HAS for letter in text.get_text()):
            wanted = _without(text)
            families, never = _families("".join(sorted(wanted)))
            absent |= never
            if families:
                text.set_fontfamily([*text.get_fontfamily(), *families])
    return absent


def _without(text: Text) -> set[str]:
    """Letters of the text that no family of it has."""
    letters = {letter for letter in text.get_text() if _is_drawn(letter)}
    for family in text.get_fontfamily():
        properties = text.get_fontproperties().copy()
        properties.set_family(family)
        try:
            file = font_manager.findfont(properties, fallback_to_default=family == "sans-serif")
        except ValueError:  # a family that is not installed
            continue
        letters -= _held(str(file), frozenset(letters))
    return letters


def _is_drawn(letter: str) -> bool:
    # spaces, line ends, and what only joins or directs other letters
    return ord(letter) >= _EVERY_FONT_HAS and unicodedata.category(letter)[0] not in "ZC"


@functools.lru_cache(maxsize=4096)
def _held(file: str, letters: frozenset[str]) -> frozenset[str]:
    try:
        font = FT2Font(file)
    except (RuntimeError, OSError):  # removed since the list was made, or no outlines
        return frozenset()
    return frozenset(letter for letter in letters if font.get_char_index(ord(letter)))


@functools.lru_cache(maxsize=1024)
def _families(letters: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families that have these letters together, the most useful first, and the letters that none has."""
    missing, found = set(letters), []
    for fonts in (_listed, _unlisted):
        names = fonts() if missing else {}
        while missing:
            held = {name: _held(file, frozenset(missing)) for name, file in names.items()}
            best = max(held, key=lambda name: len(held[name]), default=None)
            if best is None or not held[best]:
                break
            found.append(best)
            missing -= held[best]
    return tuple(found), frozenset(missing)


def _listed() -> dict[str, str]:
    """Family to file of the fonts that matplotlib knows, those for running text first."""
    entries = [e for e in font_manager.fontManager.ttflist if e.style == "normal" and _LAST_RESORT not in e.name]
    entries.sort(key=lambda e: ("Sans" not in e.name, "Mono" in e.name, e.name, abs(int(e.weight) - 400)))
    found: dict[str, str] = {}
    for entry in entries:
        found.setdefault(entry.name, entry.fname)
    return found


@functools.cache
def _installed_since() -> None:
    """Add what was installed after matplotlib made its list of fonts, which it keeps between runs."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for file in sorted(font_manager.findSystemFonts()):
        if file not in known:
            try:
                font_manager.fontManager.addfont(file)
            except (RuntimeError, OSError, ValueError):  # bitmaps, or damaged
                continue


def _unlisted() -> dict[str, str]:
    _installed_since()
    return _listed()


def _words(missing: set[str]) -> str:
    letters = sorted(missing)
    shown = " ".join(letters[:_SHOWN]) + (f" and {len(letters) - _SHOWN} more" if len(letters) > _SHOWN else "")
    return (
        f"no installed font has {shown}: the figure shows boxes in their place. Install a font that has them (Noto "
        "Sans CJK for Chinese, Japanese and Korean), or save the figure as SVG."
    )
