"""Pages in Chromium: nothing is cut at 1280 or at 390 px, figures can be read, buttons and links work."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope.report import profile_page
from rankscope.report.comparison_page import comparison_page
from rankscope.report.deficit_page import deficit_page
from rankscope.report.page import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
SCREENS = {"desk": (1280, 800), "phone": (390, 844)}
TEMPLATE = Path(rs.__file__).parent / "report" / "page.html.j2"

MEASURE = r"""
const seen = {};
const parts = colour => colour.match(/[\d.]+/g).map(Number);
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = colour => parts(colour).slice(0, 3).reduce((sum, v, k) =>
  sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][k], 0);
const style = e => e.ownerDocument.defaultView.getComputedStyle(e);
const ground = e => (parts(style(e).backgroundColor)[3] ?? 1) > 0 ? style(e).backgroundColor : ground(e.parentElement);
const contrast = e => {
  const [high, low] = [style(e)[e.closest("svg") ? "fill" : "color"], ground(e)].map(light).sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement, wide = root.clientWidth;
  const shown = [...page.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().width);
  const cut = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > wide + 1
    && !e.closest(".wide, details:not([open])"));
  const letters = [...shown[0].querySelectorAll("text")].map(t => parseFloat(getComputedStyle(t).fontSize)
    * shown[0].getBoundingClientRect().width / shown[0].viewBox.baseVal.width);
  const frames = [...page.querySelectorAll(".wide")].filter(w => w.clientWidth);
  for (const w of frames) w.scrollLeft = 9999;
  const first = frames.map(w => w.querySelector("tbody th").getBoundingClientRect().left
    - w.getBoundingClientRect().left);
  const written = [...page.querySelectorAll("body *:not(script, style)")].filter(e => e.getBoundingClientRect().width
    && [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()));
  const folded = page.querySelector("section details[id]");
  const own = frame.contentWindow;
  if (folded) { own.location.hash = folded.id; own.dispatchEvent(new Event("hashchange")); }
  const box = page.querySelector("p.search input");
  if (box) { box.value = "dog"; box.dispatchEvent(new Event("input")); }
  seen[frame.id] = {
    figures: shown.length, bottom: shown[0].getBoundingClientRect().bottom, letters: Math.min(...letters),
    cut: cut.map(e => e.tagName + "." + e.className), scrolls: root.scrollWidth > wide,
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    written: written.length, contrast: Math.min(...written.map(contrast)),
    first: Math.max(...first.map(Math.abs)),
    lines: Math.max(...[...page.querySelectorAll("section > .wide tbody th")].map(e =>
      e.getBoundingClientRect().height / parseFloat(style(e).lineHeight))),
    buttons: [...page.querySelectorAll("button")].filter(b => b.hidden).length, opened: !folded || folded.open,
    found: box ? [...page.querySelectorAll("p.search + .wide tbody tr")].filter(r => !r.hidden).length : null };
}
document.body.textContent = "<<" + JSON.stringify(seen) + ">>";
"""


@functools.cache
def deep() -> Page:
    """48 layers with long names, images with names in several scripts."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for k in range(48):
        net.add_module(f"encoder_layer_with_a_long_name_{k:02d}", nn.Linear(6, 6))
    names = ("日本語", "a" * 80, "الفئة الأولى")
    return profile_page(rs.jacobian_rank(net.eval(), torch.randn(3, 6), progress=False, names=lambda i: names[i]))


@functools.cache
def dependent() -> Page:
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 6
    logits = rng.normal(size=(240, 6)) + 4 * np.eye(6)[labels]
    names = [f"cat{k}" + " of a very long kind" * k for k in range(6)]
    return deficit_page(rs.independence_deficit(logits, labels, class_names=names, permutations=3))


@functools.cache
def compared() -> Page:
    torch.manual_seed(0)
    layers = [f"encoder_layer_with_a_long_name_{k:02d}" for k in range(30)]
    runs = {name: rs.feature_rank({n: torch.randn(30, 5) for n in layers}, progress=False) for name in ("a", "日本語")}
    return comparison_page(rs.compare(runs))


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", [deep, dependent, compared])
def test_a_page_on_a_desk_and_on_a_phone(page: Any, scheme: str, tmp_path: Path) -> None:
    text = html.escape(page().html())
    frames = "".join(
        f'<iframe id="{name}" width="{wide}" height="{high}" style="border:0" srcdoc="{text}"></iframe>'
        for name, (wide, high) in SCREENS.items()
    )
    file = tmp_path / "all.html"
    file.write_text(f"<!doctype html><body>{frames}<script>onload = () => {{ {MEASURE} }};</script></body>")
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}",
         f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}", "--virtual-time-budget=5000",
         "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search(r"&lt;&lt;(.*)&gt;&gt;", done.stdout)
    assert found, done.stderr
    seen = json.loads(html.unescape(found[1]))
    assert set(seen) == set(SCREENS)
    for name, (_, high) in SCREENS.items():
        here = seen[name]
        assert here["dark"] == (scheme == "dark")
        assert here["written"] > 50
        assert here["contrast"] >= 4.5, name  # the least of the guidelines for what is read
        assert here["figures"] == 1  # the wide one or the narrow one
        assert here["bottom"] <= high, name
        assert here["letters"] >= 8, name
        assert not here["cut"], name
        assert not here["scrolls"], name
        assert here["first"] <= 1, name  # the first column stays where the table scrolls
        assert page is not deep or here["lines"] < 3, name  # a name of 33 letters takes two lines
        assert here["buttons"] == 0, name
        assert here["opened"], name
        assert here["found"] in (None, 0), name


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    """Of the Web Content Accessibility Guidelines 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_colour_is_seen_on_a_light_and_on_a_dark_ground() -> None:
    """4.5 for what is read, 3 for what is a line: the guidelines' least contrasts."""
    blocks = re.findall(r":root \{(.*?)\}", TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)
    palettes = [colours(block) for block in blocks]
    assert [len(p) for p in palettes] == [14, 14, 14]  # light, dark, print
    for palette in palettes:
        for name in ("text", "faint", "warn", "mark"):
            assert contrast(palette[name], palette["ground"]) >= 4.5, name
        for name in ("blue", "orange", "green", "pink", "yellow", "sky", "grey"):
            assert contrast(palette[name], palette["ground"]) >= 3, name
